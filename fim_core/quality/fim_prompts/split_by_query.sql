-- description: Few held-out queries equal a training query apart from case, white space and literals.
-- severity: warn
-- max_share: 0.5
-- total: (SELECT count(*) FROM fim_prompts WHERE split = 'eval' AND is_completion)
WITH queries AS (
    SELECT
        row_id,
        split,
        -- Equal statements are normalised only once, which halves the work.
        prefix || response || suffix AS query
    FROM fim_prompts
    WHERE is_completion
),
normalised AS (
    SELECT
        query,
        md5_number(
            regexp_replace(regexp_replace(lower(query), '''([^'']|'''')*''|\b[0-9]+(\.[0-9]+)?\b', '?', 'g'), '\s+', ' ', 'g')
        ) AS digest
    FROM (SELECT DISTINCT query FROM queries)
),
placed AS (
    SELECT row_id, split, digest
    FROM queries
    JOIN normalised USING (query)
)
SELECT row_id
FROM placed
WHERE split = 'eval' AND digest IN (SELECT digest FROM placed WHERE split = 'train')
