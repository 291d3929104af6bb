"""Files of object storage (`s3://`, `gs://`, `az://`, `hf://`), through fsspec.

Exports are copied to this machine once for each version of an object, and read from the copy. Streaming them would fetch each
several times, since an export is read more than once (digest, columns, rows), and it could change in between.
"""
