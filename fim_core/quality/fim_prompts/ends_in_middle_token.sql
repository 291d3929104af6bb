-- description: Every FIM prompt ends in the token after which the model writes.
-- severity: error
SELECT row_id
FROM fim_prompts
WHERE source_type = 'fim_completions' AND NOT ends_with(prompt, $middle_token)
