-- description: Few responses are a null marker of an export: \N of MySQL and Snowflake, NULL of SQL, NaN, None, <NA> and NaT
--   of pandas, and others. Some are valid SQL; `data.null_marks` turns the others into empty outputs.
-- severity: warn
-- max_share: 0.02
-- note: (
--   SELECT 'Found: ' || string_agg(format('{} ({:,})', mark, rows), ', ' ORDER BY rows DESC, mark) || '.'
--   FROM (
--     SELECT trim(response) AS mark, count(*) AS rows FROM fim_prompts
--     WHERE lower(trim(response)) IN ('null', 'none', 'nan', 'nat', 'na', 'n/a', '#n/a', '<na>', '\n', '(null)', '[null]', '<null>', 'nil', 'undefined') GROUP BY mark
--   )
--   )
SELECT row_id
FROM fim_prompts
WHERE lower(trim(response)) IN ('null', 'none', 'nan', 'nat', 'na', 'n/a', '#n/a', '<na>', '\n', '(null)', '[null]', '<null>', 'nil', 'undefined');

SELECT
    type,
    count(*) FILTER (WHERE lower(trim(response)) IN ('null', 'none', 'nan', 'nat', 'na', 'n/a', '#n/a', '<na>', '\n', '(null)', '[null]', '<null>', 'nil', 'undefined')) AS null_like,
    count(*) FILTER (WHERE response = '') AS empty,
    count(*) AS total
FROM fim_prompts
GROUP BY type
ORDER BY type
