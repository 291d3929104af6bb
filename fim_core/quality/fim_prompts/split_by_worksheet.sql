-- description: If rows are grouped by worksheet, no worksheet is in both splits. Otherwise the check only counts the held-out
--   rows whose worksheet also has training rows. Rows without a worksheet are not checked.
-- severity: error
-- total: (SELECT count(*) FROM fim_prompts WHERE split = 'eval')
-- needs: raw_completions.worksheet_id
-- parameter: group_by = config.data.group_by
WITH placed AS (
    SELECT fim_prompts.row_id, split, worksheet_id
    FROM fim_prompts
    JOIN raw_completions ON raw_completions.row_id = fim_prompts.row_id
)
SELECT row_id
FROM placed
WHERE lower($group_by) = 'worksheet_id'
    AND split = 'eval'
    AND worksheet_id <> ''
    AND worksheet_id IN (SELECT worksheet_id FROM placed WHERE split = 'train');

WITH placed AS (
    SELECT split, worksheet_id
    FROM fim_prompts
    JOIN raw_completions ON raw_completions.row_id = fim_prompts.row_id
)
SELECT
    count(*) AS held_out_rows,
    count(*) FILTER (
        WHERE worksheet_id <> '' AND worksheet_id IN (SELECT worksheet_id FROM placed WHERE split = 'train')
    ) AS worksheet_in_training
FROM placed
WHERE split = 'eval'
