-- description: For each TYPE, the median lengths of prompts and responses are between half and double those of the previous
--   version.
-- severity: warn
-- total: (SELECT count(DISTINCT type) FROM fim_prompts)
-- needs: previous
WITH now AS (
    SELECT type, median(length(prompt)) AS prompt, median(length(response)) AS response
    FROM fim_prompts
    GROUP BY type
    HAVING count(*) >= 30
),
before AS (
    SELECT type, median(length(prompt)) AS prompt, median(length(response)) AS response
    FROM previous
    GROUP BY type
    HAVING count(*) >= 30
)
-- One is added so that types with empty responses can be compared, too.
SELECT type
FROM now
JOIN before USING (type)
WHERE (now.prompt + 1) / (before.prompt + 1) NOT BETWEEN 0.5 AND 2
    OR (now.response + 1) / (before.response + 1) NOT BETWEEN 0.5 AND 2;

WITH both_versions AS (
    SELECT 'now' AS version, type, length(prompt) AS prompt, length(response) AS response FROM fim_prompts
    UNION ALL
    SELECT 'previous' AS version, type, length(prompt) AS prompt, length(response) AS response FROM previous
)
SELECT
    type,
    version,
    count(*) AS rows,
    quantile_disc(prompt, 0.1) AS prompt_p10,
    quantile_disc(prompt, 0.5) AS prompt_p50,
    quantile_disc(prompt, 0.9) AS prompt_p90,
    quantile_disc(response, 0.1) AS response_p10,
    quantile_disc(response, 0.5) AS response_p50,
    quantile_disc(response, 0.9) AS response_p90
FROM both_versions
GROUP BY type, version
ORDER BY type, version
