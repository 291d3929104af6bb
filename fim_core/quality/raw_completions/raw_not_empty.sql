-- description: The sources contain at least one row.
-- severity: error
-- total: 1
SELECT 'raw_completions' AS table_name
WHERE NOT EXISTS (FROM raw_completions)
