"""`python -m pipelines …` is the command `dynamic-rnn …`.

May import: pipelines.cli.
"""

from pipelines.cli.app import main

main()
