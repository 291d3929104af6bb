"""Experiment files of ArcticTraining: how each of their keys is treated, and where its defaults differ from ours.

ArcticTraining (github.com/snowflakedb/ArcticTraining) is the trainer whose file format this project follows. `keys.KEYS`
lists every key of its SFT files. `translate.translate` turns such a file into one of ours; a file of ours passes through
unchanged. `defaults.report` says what to know of it.
"""
