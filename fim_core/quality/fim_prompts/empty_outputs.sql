-- description: Empty completions are a minority. A model trained mostly on them learns to complete nothing.
-- severity: warn
-- max_share: 0.4
SELECT row_id
FROM fim_prompts
WHERE response = '';

SELECT type, count(*) FILTER (WHERE response = '') AS rows, count(*) AS total, round(avg((response = '')::INT), 5) AS share
FROM fim_prompts
GROUP BY type
ORDER BY type
