-- description: There is at least one row to train on.
-- severity: error
-- total: 1
SELECT 'train' AS split
WHERE NOT EXISTS (FROM fim_prompts WHERE split = 'train')
