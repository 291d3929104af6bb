-- description: The placeholder is gone from prefix, suffix and response.
-- severity: error
-- max_share: 0.001
-- parameter: placeholder = config.data.placeholder
SELECT row_id
FROM fim_prompts
WHERE contains(prefix, $placeholder) OR contains(suffix, $placeholder) OR contains(response, $placeholder)
