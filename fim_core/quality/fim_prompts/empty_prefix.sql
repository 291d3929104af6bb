-- description: Few cursors are at the very start of the SQL, where only the context tells what to write.
-- severity: warn
-- max_share: 0.05
SELECT row_id
FROM fim_prompts
WHERE is_completion AND prefix = ''
