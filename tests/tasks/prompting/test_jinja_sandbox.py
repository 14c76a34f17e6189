"""Templates of others: what they may do comes out as in jinja2, what they may not is refused in one line."""

import tracemalloc

import jinja2
import pytest

from tasks.prompting.jinja_sandbox import JinjaTemplate, TemplateError

ROW = {
    "text": "a b a c",
    "words": ["x", "y", "x"],
    "label": 1,
    "nested": {"answers": [{"text": "one"}, {"text": "two"}], "items": [1, 2]},
}


@pytest.mark.parametrize(
    "text",
    [
        "{{ text }} {{ words[label] }} {{ nested.answers[1].text }} {{ missing }}",
        "{% for w in words %}{{ loop.index }}{{ w }}{{ ', ' if not loop.last }}{% endfor %} {{ words | length }}",
        "{% for a, b in zip(words, nested.answers) %}{{ a }}={{ b.text }};{% endfor %}",
        "{{ words | unique | join('-') }} {{ text.split() | map('upper') | list }} {{ nested['items'] | max }}",
        "{{ nested.answers | map(attribute='text') | join(' and ') }} {{ text.replace('a', 'b') }}",
        "{% set ns = namespace(n=0) %}{% for w in words %}{% set ns.n = ns.n + 2 ** 3 * 2 %}{% endfor %}{{ ns.n }}",
        "{% set out = [] %}{% for w in words %}{{ out.append(w ~ '!') or '' }}{% endfor %}{{ out | join }}",
        "{% set t %}{{ text | title }}{% endset %}{{ t }} {{ 5 // 2 }} {{ '-' * 3 }}",
        "{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(text) }} {{ '%.2f' | format(1 / 3) }} {{ '%d' % 3 }}",
        "{% for w in words recursive %}{{ w }}{{ loop(['z']) if w == 'y' }}{% endfor %}",
        "{{ words | select('equalto', 'x') | list | count }} {{ text | truncate(4, True) }} {{ 7 / 2 | round }}",
        "{{ range(3) | list }} {{ text is defined }} {{ text | trim | capitalize }} {{ words | sort | first }}",
    ],
)
def test_a_template_renders_as_in_jinja2(text):
    environment = jinja2.Environment()
    environment.globals["zip"] = zip
    assert JinjaTemplate(text).render(ROW) == environment.from_string(text).render(**ROW)


def test_names_are_those_of_the_row():
    assert JinjaTemplate("{{ a }}{% for b in c %}{{ b }}{% endfor %}{{ range(2) }}").names == {"a", "c"}
    assert JinjaTemplate("yes ||| no").constant
    assert not JinjaTemplate("{{ [1, 2] | choice }}").constant and not JinjaTemplate("{{ a }}").constant


def test_random_choices_follow_the_seed():
    template = JinjaTemplate("{{ ['a', 'b', 'c'] | choice }}{{ words | random }}")
    drawn = [template.render(ROW, seed) for seed in range(300)]
    assert drawn == [template.render(ROW, seed) for seed in range(300)]
    assert len(set(drawn)) == 6


def test_a_row_is_not_changed_by_its_template():
    row = {"words": ["x"]}
    assert JinjaTemplate("{{ words.append('y') or words | length }}").render(row) == "2" and row == {"words": ["x"]}


LOOPS_AND_SIZES = {
    "endless list": "{% set l = [1] %}{% for x in l %}{% set _ = l.append(x) %}{% endfor %}",
    "nested ranges": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by +": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by set": "{% set x = 'ab' %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling by macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% set x = 'ab' %}" + "{% set x = m(x) %}" * 60,
    "times": "{{ 'x' * 10000000000 }}",
    "times of a list": "{{ [1] * 10000000000 }}",
    "a tower": "{{ 9 ** 9 ** 9 ** 9 ** 9 }}",
    "squaring": "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "wide format": "{{ '%9999999999d' | format(1) }}",
    "wide operator": "{{ '%9999999999d' % 1 }}",
    "replace": "{% set x = 'a' * 90000 %}{{ x.replace('a', x) }}",
    "replace filter": "{% set x = 'a' * 90000 %}{{ x | replace('a', x) }}",
    "join": "{% set x = 'a' * 90000 %}{{ x.join(range(99999)) }}",
    "join filter": "{% set x = 'a' * 90000 %}{{ range(99999) | join(x) }}",
    "join by name": "{% set x = 'a' * 90000 %}{{ range(99999) | join(d=x) }}",
    "recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([[1], [1]]) }}{{ loop([[1], [1]]) }}{% endfor %}",
    "large range": "{{ range(10 ** 9) | list }}",
    "sum of parts": "{% for i in range(9999) %}{{ words | join(text * 100) }}{{ text * 100 }}{% endfor %}" * 100,
}


@pytest.mark.parametrize("name", LOOPS_AND_SIZES)
def test_a_template_that_never_ends_or_fills_the_memory_is_stopped(name):
    tracemalloc.start()
    try:
        with pytest.raises(TemplateError, match=r"steps|power|product|format|Recursion|Overflow|too big"):
            JinjaTemplate(LOOPS_AND_SIZES[name]).render(ROW)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text",
    [
        "{{ text.__class__ }}",
        "{{ text.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ text | attr('__class__') }}",
        "{{ words.append.__self__ }}",
        "{{ text.format(words) }}",
        "{{ '{:>99999999999}'.format(1) }}",
        "{{ text.encode() }}",
        "{{ text.ljust(10) }}",
        "{{ (1).to_bytes(9) }}",
        "{{ self.__init__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum() }}",
        "{{ namespace.__init__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% from 'os' import path %}",
        "{% extends 'base' %}",
        "{{ open('/etc/passwd') }}",
        "{{ text | pprint }}",
        "{{ [1, 2] | map('attr', '__class__') | list }}",
        "{{ dict.fromkeys(words) }}",
        "{% for x in %}",
        "{{ ",
        "{" * 70_000,
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    ],
)
def test_attributes_modules_files_and_broken_templates_are_refused_in_one_line(text):
    try:
        rendered = JinjaTemplate(text).render(ROW)
    except TemplateError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert rendered == ""  # an undefined value: nothing was reached
