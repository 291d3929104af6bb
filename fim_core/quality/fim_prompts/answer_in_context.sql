-- description: Few responses of 20 characters or more occur verbatim in the prompt, where the model can simply copy them.
-- severity: warn
-- max_share: 0.5
-- total: (SELECT count(*) FROM fim_prompts WHERE length(trim(response)) >= 20)
SELECT row_id
FROM fim_prompts
WHERE length(trim(response)) >= 20 AND contains(prompt, trim(response));

SELECT
    type,
    count(*) FILTER (WHERE contains(prompt, trim(response))) AS rows,
    count(*) AS total,
    round(avg(contains(prompt, trim(response))::INT), 5) AS share
FROM fim_prompts
WHERE length(trim(response)) >= 20
GROUP BY type
ORDER BY type
