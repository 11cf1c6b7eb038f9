"""The record of a run: one SQLite file, written beside the training and read back by any tool.

`recorder` takes the new steps from the reader, `writer` puts them into the file that `schema` describes, `run` reads
it back, `export` and `folder` serve the commands `gradwatch export` and `gradwatch runs`.
"""
