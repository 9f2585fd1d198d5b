"""The base class of cells by its former name, for plugins written for 0.1.0; new ones write `from model import Cell`.

May import: model.network.
"""

from model.network.cells import Cell as Cell
