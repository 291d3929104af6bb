-- description: No group is in both splits, so that the model is not evaluated on what it was trained on.
-- severity: error
-- total: (SELECT count(*) FROM fim_prompts WHERE split = 'eval')
WITH shared AS (
    SELECT "group"
    FROM fim_prompts
    GROUP BY "group"
    HAVING bool_or(split = 'train') AND bool_or(split = 'eval')
)
SELECT row_id
FROM fim_prompts
SEMI JOIN shared USING ("group")
WHERE split = 'eval'
