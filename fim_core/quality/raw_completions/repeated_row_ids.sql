-- description: Each row has an id of its own. A file that is given twice repeats them.
-- severity: warn
SELECT row_id
FROM raw_completions
GROUP BY row_id
HAVING count(*) > 1
