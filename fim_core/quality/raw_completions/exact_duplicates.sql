-- description: Few rows repeat the input and output of another row. Duplicates count double in training.
-- severity: warn
-- max_share: 0.05
WITH digests AS (
    SELECT row_id, md5_number(input) AS input, md5_number(output) AS output
    FROM raw_completions
    WHERE input <> ''
),
repeated AS (
    SELECT input, output, min(row_id) AS first_row_id
    FROM digests
    GROUP BY input, output
    HAVING count(*) > 1
)
SELECT row_id
FROM digests
JOIN repeated USING (input, output)
WHERE row_id <> first_row_id
