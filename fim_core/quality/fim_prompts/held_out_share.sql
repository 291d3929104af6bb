-- description: The share of held-out rows is within 2 points of data.eval_fraction, and they come from at least 10 groups, none
--   with more than a quarter of them. Fewer or larger groups make the confidence intervals of the evaluation wide.
-- severity: warn
-- total: 3
-- note: (
--   SELECT format('{:,} of {:,} rows ({:.1f}%) in {:,} of {:,} groups are held out.', sum(held), sum(rows), 100 * sum(held) / sum(rows),
--   count(*) FILTER (WHERE held > 0), count(*))
--   || CASE WHEN sum(held) > 0 THEN format(' The largest of these groups has {:.1f}% of the held-out rows.', 100 * max(held) / sum(held)) ELSE '' END
--   || CASE WHEN sum(left_out) > 0 THEN format(' {:,} rows are in neither split: their group is held out, but their statement also occurs in training groups.', sum(left_out)) ELSE '' END
--   FROM (SELECT count(*) AS rows, count(*) FILTER (WHERE split = 'eval') AS held, count(*) FILTER (WHERE split = 'left_out') AS left_out FROM fim_prompts GROUP BY "group")
--   HAVING count(*) > 0
--   )
-- parameter: asked = counts.asked_share
-- parameter: shared_statements = counts.shared
WITH held_out AS (
    SELECT "group", count(*) AS rows
    FROM fim_prompts
    WHERE split = 'eval'
    GROUP BY "group"
),
found AS (
    SELECT
        coalesce(sum(rows), 0) / greatest((SELECT count(*) FROM fim_prompts), 1) AS share,
        count(*) AS groups,
        coalesce(max(rows) / sum(rows), 0) AS largest
    FROM held_out
)
SELECT unnest(
    -- The share is not checked where the held-out rows come from eval_sources ($asked is NULL).
    CASE WHEN abs(share - $asked::DOUBLE) > 0.02 THEN ['share'] ELSE [] END
    || CASE WHEN groups < 10 THEN ['groups'] ELSE [] END
    || CASE WHEN largest > 0.25 THEN ['largest group'] ELSE [] END
) AS fault
FROM found
WHERE $asked::DOUBLE IS DISTINCT FROM 0;

SELECT
    $asked::DOUBLE AS asked,
    round(count(*) FILTER (WHERE split = 'eval') / count(*), 4) AS held_out_share,
    count(*) FILTER (WHERE split = 'eval') AS held_out_rows,
    count(DISTINCT "group") FILTER (WHERE split = 'eval') AS held_out_groups,
    coalesce(
        (SELECT round(max(rows) / sum(rows), 4) FROM (SELECT count(*) AS rows FROM fim_prompts WHERE split = 'eval' GROUP BY "group")),
        0
    ) AS largest_held_out_group_share,
    count(DISTINCT "group") AS groups,
    (SELECT max(rows) FROM (SELECT count(*) AS rows FROM fim_prompts GROUP BY "group")) AS largest_group_rows,
    $shared_statements AS rows_of_shared_statements,
    count(*) FILTER (WHERE split = 'left_out') AS left_out
FROM fim_prompts
