-- description: Every raw row became exactly one prompt or one rejection with a reason, and there are no other rows.
-- severity: error
-- total: (SELECT count(*) FROM raw_completions)
WITH made AS (
    SELECT row_id FROM fim_prompts
    UNION ALL
    SELECT row_id FROM rejected WHERE reason <> ''
),
raw_rows AS (SELECT row_id, count(*) AS times FROM raw_completions GROUP BY row_id),
made_rows AS (SELECT row_id, count(*) AS times FROM made GROUP BY row_id)
SELECT row_id
FROM raw_rows
FULL JOIN made_rows USING (row_id)
WHERE raw_rows.times IS DISTINCT FROM made_rows.times
