"""The settings of `prepare` by their former name, for scripts written for 0.1.0.

May import: pipelines.prepare.
"""

from pipelines.prepare.settings import PrepareSettings as PrepareSettings
