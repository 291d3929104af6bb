-- description: Every prompt became exactly one tokenized row in its split or one rejection, unless it is in neither split.
-- severity: error
-- total: (SELECT count(*) FROM fim_prompts)
WITH prompts AS (
    SELECT row_id, split, count(*) AS times FROM fim_prompts WHERE split <> 'left_out' GROUP BY row_id, split
),
made AS (
    SELECT row_id, split FROM tokenized_dataset
    UNION ALL
    SELECT row_id, split FROM not_tokenized LEFT JOIN fim_prompts USING (row_id)
),
made_rows AS (SELECT row_id, split, count(*) AS times FROM made GROUP BY row_id, split)
SELECT row_id
FROM prompts
FULL JOIN made_rows USING (row_id, split)
WHERE prompts.times IS DISTINCT FROM made_rows.times
