"""`python -m gradwatch`: the command `gradwatch`, for where no script is on the path."""

from gradwatch.cli import main

main()
