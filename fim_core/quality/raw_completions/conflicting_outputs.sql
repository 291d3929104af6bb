-- description: Few rows have the same input and different outputs. The model cannot learn all of them.
-- severity: warn
-- max_share: 0.02
WITH digests AS (
    SELECT row_id, md5_number(input) AS input, md5_number(output) AS output
    FROM raw_completions
    WHERE input <> ''
),
conflicting AS (
    SELECT input
    FROM digests
    GROUP BY input
    HAVING min(output) <> max(output)
)
SELECT row_id
FROM digests
SEMI JOIN conflicting USING (input)
