-- description: Every row_id is unique. Listing a file twice repeats its row_ids.
-- severity: warn
SELECT row_id
FROM raw_completions
GROUP BY row_id
HAVING count(*) > 1
