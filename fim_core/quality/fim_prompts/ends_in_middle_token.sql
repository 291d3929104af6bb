-- description: Every FIM prompt ends in the middle token, after which the model writes.
-- severity: error
-- parameter: middle_token = recipe.fim_tokens.middle
SELECT row_id
FROM fim_prompts
WHERE is_completion AND NOT ends_with(prompt, $middle_token)
