"""Support for experiment files of ArcticTraining.

This project follows the file format of ArcticTraining (github.com/snowflakedb/ArcticTraining). `keys.KEYS` lists every
key of its SFT files. `translate.translate` converts such a file to our format; our own files pass through unchanged.
`defaults.report` describes what was translated and which defaults differ.
"""
