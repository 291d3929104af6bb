-- description: Every FIM prompt contains each FIM token exactly once, and no response contains any. Rows whose user
--   text spells control tokens, which are then encoded as ordinary text, are not checked.
-- severity: error
-- parameter: middle_token = recipe.fim_tokens.middle
-- parameter: prefix_token = recipe.fim_tokens.prefix
-- parameter: suffix_token = recipe.fim_tokens.suffix
SELECT row_id
FROM fim_prompts
WHERE is_completion
    AND control_spans IS NULL
    AND (
        len(string_split(prompt, $prefix_token)) <> 2
        OR len(string_split(prompt, $suffix_token)) <> 2
        OR len(string_split(prompt, $middle_token)) <> 2
        OR contains(response, $prefix_token)
        OR contains(response, $suffix_token)
        OR contains(response, $middle_token)
    )
