-- description: Few responses are a bare NULL-like word. Some are SQL; many come from an export that wrote NULL for
--   nothing.
-- severity: warn
-- max_share: 0.02
SELECT row_id
FROM fim_prompts
WHERE lower(trim(response)) IN ('null', 'none', 'nan', 'na', 'n/a', 'nil', 'undefined');

SELECT
    type,
    count(*) FILTER (WHERE lower(trim(response)) IN ('null', 'none', 'nan', 'na', 'n/a', 'nil', 'undefined')) AS null_like,
    count(*) FILTER (WHERE response = '') AS empty,
    count(*) AS total
FROM fim_prompts
GROUP BY type
ORDER BY type
