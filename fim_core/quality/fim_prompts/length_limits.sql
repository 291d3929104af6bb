-- description: No prompt is longer than 100,000 characters, and no response longer than 4,000. People rarely type
--   such rows.
-- severity: warn
SELECT row_id
FROM fim_prompts
WHERE length(prompt) > 100_000 OR length(response) > 4_000
