-- description: There is at least one tokenized row to train on.
-- severity: error
-- total: 1
SELECT 'train' AS split
WHERE NOT EXISTS (FROM tokenized_dataset WHERE split = 'train')
