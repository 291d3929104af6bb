-- description: Labels are -100 on the prompt (unless every token is trained on), and equal the tokens after it. In
--   conversations, which also train on earlier assistant turns, there is one trained span per turn.
-- severity: error
-- needs: fim_prompts.trained_spans
-- parameter: mask_inputs = config.data.mask_inputs
WITH conversations AS (
    SELECT
        row_id,
        len(trained_spans) // 2 AS turns,
        -- The last span may extend to the end of the prompt and continue in the response.
        trained_spans[-1] < length(prompt) AS is_apart
    FROM fim_prompts
    WHERE trained_spans IS NOT NULL
)
SELECT row_id
FROM tokenized_dataset
LEFT JOIN conversations USING (row_id)
WHERE len(labels) <> len(input_ids)
    -- At least the end token follows the prompt.
    OR prompt_length NOT BETWEEN 0 AND len(input_ids) - 1
    OR CASE
        WHEN NOT $mask_inputs THEN labels <> input_ids
        WHEN turns IS NULL THEN
            labels <> list_resize([]::INTEGER[], prompt_length, -100) || input_ids[prompt_length + 1:]
        ELSE
            labels[prompt_length + 1:] <> input_ids[prompt_length + 1:]
            OR len(list_filter(range(1, len(labels) + 1), lambda i: labels[i] NOT IN (-100, input_ids[i]))) > 0
            OR (is_apart AND labels[prompt_length] <> -100)
            OR turns + is_apart::INTEGER <> len(
                list_filter(range(1, len(labels) + 1), lambda i: labels[i] <> -100 AND (i = 1 OR labels[i - 1] = -100))
            )
    END
