-- description: Labels are -100 on the prompt (unless every token is trained on) and the token itself after it.
-- severity: error
SELECT row_id
FROM tokenized_dataset
WHERE len(labels) <> len(input_ids)
    OR prompt_length NOT BETWEEN 0 AND len(input_ids)
    OR labels <> (
        CASE WHEN $mask_inputs
            THEN list_resize([]::INTEGER[], prompt_length, -100) || input_ids[prompt_length + 1:]
            ELSE input_ids
        END
    )
