"""Makes tests/fixtures/tokenizer/chat_templates.json: chat templates in the styles that models use,
chats, and what Hugging Face's `apply_chat_template` renders from them.

    python3 tests/goldens/make_chat_template_goldens.py SMOLLM2.gguf

Needs: gguf, transformers, jinja2. The templates are written for this purpose, but for SmolLM2's own.
"""

import datetime
import json
import sys
from pathlib import Path

import gguf
import jinja2
from transformers.utils import chat_template_utils

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "tokenizer" / "chat_templates.json"
NOW = datetime.datetime(2026, 7, 3, 0, 5, 9)

TEMPLATES = {
    # Headers and <|eot_id|>, with today's date and tools as indented JSON.
    "llama-3": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You can call:\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("only one tool call at once") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    # ChatML with a namespace, reversed search, thinking that is cut out, several tools.
    "qwen-3": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thoughts = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thoughts = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role }}
        {%- if loop.index0 > ns.last and (loop.last or thoughts) %}
            {{- '\\n<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function if call.function else call %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    # Alternation enforced, the system message folded into the first turn.
    "mistral": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (loop.index0 % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if message == user_messages[-1] and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}
""",
    # Renamed roles, content in parts, no system role.
    "gemma": """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
""",
    # Blocks without minus signs: trimming is the environment's.
    "phi-3": """{% for message in messages %}
    {% if message['role'] == 'system' and message['content'] %}
        {{'<|system|>
' + message['content'] + '<|end|>
'}}
    {% elif message['role'] in ['user', 'assistant'] %}
        {{'<|' + message['role'] + '|>
' + message['content'] + '<|end|>
'}}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|assistant|>
' }}
{% else %}
{{ eos_token }}
{% endif %}""",
    # The assistant's words marked for training; macros, filters, loop controls.
    "marked": """{% macro turn(role, text) %}<{{ role | upper }}>{{ text | replace('\\n', ' ') }}</{{ role | upper }}>{% endmacro %}
{% for message in messages if message.role != 'tool' %}
{% if loop.index0 > 3 %}{% break %}{% endif %}
{% if message.role == 'assistant' %}
{% generation %}
{{ turn(message.role, message.content or 'none') }}
{%- endgeneration %}
{% else %}
{{ turn(message.role, message.content | default('', true) if message.content is string else message.content | map(attribute='text') | join('+')) }}
{% endif %}
{{ loop.index }}/{{ loop.length }}{{ "" if loop.last else "," }}
{% endfor %}
{{ messages | map(attribute='role') | unique | join(' ') }}""",
    # How values print.
    "values": """{{ messages | length }} {{ add_generation_prompt }} {{ tools is none }} {{ nothing }}|{{ none }}|{{ 1 / 2 }}|{{ 7 // 2 }}|{{ 1e20 }}
{{ messages[0].keys() | list }} {{ [1, 'a', none, true, {'k': 2.0}] }}
{{ tools | tojson }}
{{ tools | tojson(indent=2) }}
{{ {'b': 1, 'a': [1, 2]} | tojson(sort_keys=true) }} {{ [1, {'x': 2}] | tojson(separators=(',', ':')) }}
{{ '<é"&\\'>' | tojson }} {{ 'a,b,,c'.split(',') }} {{ 'x'.join(['1', '2']) }} {{ 'Title case'.title() }}
{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}
{{ messages[-1].role }} {{ 'user' in messages | map(attribute='role') }} {{ '%s-%d' % ('a', 3) if false else 'b' }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} {{ 3 is odd }} {{ range(3) | list }}""",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather of a <place> & day, \"exactly\".",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "number", "default": 1.5}}, "required": []},
        },
    },
    {"type": "function", "function": {"name": "noop", "parameters": {}}},
]

CHATS = {
    "plain": [{"role": "user", "content": "Hello, who are you?"}],
    "system": [{"role": "system", "content": "Be brief.\nAlways."}, {"role": "user", "content": "  Hi é漢🙂  \n"}],
    "turns": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "five <|im_end|>"},
    ],
    "tools": [
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln <x>", "days": 2.0}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": "It is \"sunny\".", "reasoning_content": "easy"},
    ],
    "parts": [{"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "text", "text": "here"}]}],
    "unordered": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    "empty": [{"role": "user", "content": ""}],
}

VARIABLES = [
    {},
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "tools": TOOLS},
    {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 Jan 2000"},
]


class FixedDate(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


def render(template, messages, variables):
    compiled = chat_template_utils._compile_jinja_template(template)
    settings = {"add_generation_prompt": False, "tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
    return compiled.render(messages=messages, **{**settings, **variables})


def main():
    chat_template_utils.datetime = FixedDate
    fields = gguf.GGUFReader(sys.argv[1]).fields
    templates = {"smollm2": fields["tokenizer.chat_template"].contents(), **TEMPLATES}
    cases = []
    for name, template in templates.items():
        for chat, messages in CHATS.items():
            for variables in VARIABLES:
                case = {"template": name, "chat": chat, "variables": variables}
                try:
                    case["text"] = render(template, messages, variables)
                except jinja2.exceptions.TemplateError as error:
                    case["raised"] = str(error)
                except TypeError:
                    # What Python can't add together.
                    case["raised"] = ""
                cases.append(case)
    seconds = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    content = {"now": seconds, "templates": templates, "chats": CHATS, "cases": cases}
    OUT.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(len(cases), "cases,", sum("raised" in case for case in cases), "raise;", OUT.stat().st_size, "bytes")


main()
