-- description: The columns that later steps read exist with the expected type.
-- severity: error
-- total: 7
SELECT required.name AS column_name
FROM (
    VALUES ('row_id', 'VARCHAR'), ('source', 'VARCHAR'), ('source_type', 'VARCHAR'), ('type', 'VARCHAR'),
        ('input', 'VARCHAR'), ('output', 'VARCHAR'), ('held_out', 'BOOLEAN')
) AS required(name, data_type)
ANTI JOIN (DESCRIBE raw_completions) AS found
    ON found.column_name = required.name AND found.column_type = required.data_type
