"""Chat templates of every kind that the code distinguishes, with the control tokens of the small tokenizer."""

from __future__ import annotations

_TURN = "{{ '<|im_start|>' + m.role + '\\n' + %s + '<|im_end|>\\n' }}"
_OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


def each_turn(content: str, before: str = "") -> str:
    """A template that writes every turn, with `content` as the expression for its text."""
    return before + "{% for m in messages %}" + _TURN % content + "{% endfor %}" + _OPEN


VERBATIM = each_turn("m.content")
STRIPPED = each_turn("m.content | trim", "{{ date_string if date_string else strftime_now('%f') }}")
NO_SYSTEM = each_turn("m.content", "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}")
DROPS_SYSTEM = (
    "{% for m in messages %}{% if m.role != 'system' %}" + _TURN % "m.content" + "{% endif %}{% endfor %}" + _OPEN
)
# Puts the system text into the user's turn, and strips both together.
MERGED = (
    "{% for m in messages %}{% if m.role == 'system' %}{% set system = m.content + '\\n\\n' %}{% endif %}{% endfor %}"
    "{% set text = messages[-1].content %}{% if messages[0].role == 'system' %}"
    "{% set text = '<<' + messages[0].content + '>>\\n\\n' + text %}{% endif %}"
    "{{ '<|im_start|>user\\n' + text.strip() + '<|im_end|>\\n' }}" + _OPEN
)
REWRITES = each_turn("(m.content | replace('x', 'y'))")
# As Qwen3 has it: an empty block of thoughts in the last assistant turn, none in earlier ones.
THINKS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}" + _OPEN
)
