"""`python -m pipelines …` is the command `dynamic-rnn …`."""

from pipelines.cli.app import main

main()
