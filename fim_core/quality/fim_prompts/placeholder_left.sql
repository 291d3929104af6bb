-- description: The placeholder is gone from prefix, suffix and response.
-- severity: error
-- max_share: 0.001
SELECT row_id
FROM fim_prompts
WHERE contains(prefix, $placeholder) OR contains(suffix, $placeholder) OR contains(response, $placeholder)
