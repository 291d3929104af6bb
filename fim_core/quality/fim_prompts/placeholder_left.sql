-- description: Prefix, suffix and response do not contain the placeholder.
-- severity: error
-- max_share: 0.001
-- parameter: placeholder = config.data.placeholder
SELECT row_id
FROM fim_prompts
WHERE contains(prefix, $placeholder) OR contains(suffix, $placeholder) OR contains(response, $placeholder)
