-- description: Few rows have an empty INPUT. Such rows are rejected.
-- severity: warn
-- max_share: 0.05
SELECT row_id
FROM raw_completions
WHERE NOT regexp_matches(coalesce(input, ''), '\S')
