"""What plain letters and digits look like: one short description for each of five scripts, where one is known."""

from __future__ import annotations

_LATIN_SMALL = """
a a round bowl with a stem on its right
b a tall stem on the left with a bowl at the lower right
c an open curve with its gap on the right
d a tall stem on the right with a bowl at the lower left
e a round bowl with a level bar and a gap at the lower right
f a tall stem that bends to the right at the top, with a short crossbar
g a bowl with a tail below the baseline
h a tall stem on the left with an arch on the right
i a short stem with a dot over it
j a stem with a dot over it and a tail that turns left below the baseline
k a tall stem with two slanted arms on the right
l a single tall stem
m three short stems joined by two arches
n two short stems joined by an arch
o a closed ring
p a stem that goes below the baseline with a bowl at the upper right
q a stem that goes below the baseline with a bowl at the upper left
r a short stem with a small arm at the upper right
s a double curve like a snake
t a stem with a crossbar and a foot that turns right
u two short stems joined by a bowl at the bottom
v two slanted strokes that meet at the bottom
w two letters v side by side
x two slanted strokes that cross
y two slanted strokes that meet, one of them going below the baseline
z two level bars joined by a slanted stroke
alpha a round loop whose ends cross or meet a stem on the right
esh a tall, stretched s that goes below the baseline
ezh a z with a curved lower half that goes below the baseline
eth a round bowl with a curved, crossed stem over it
thorn a stem, tall and deep, with a bowl in its middle
schwa an e upside down
ae an a and an e joined
oe an o and an e joined
eng an n whose right stem curls to the left below the baseline
iota a short stem with a foot and no dot
upsilon a bowl with two arms that turn outwards
gamma two arms that meet in a loop below the baseline
phi a ring with an upright stroke through it
chi two crossing strokes that go below the baseline
omega two bowls side by side, open at the top
lambda a peak of two slanted strokes
kra a short stem with two short arms
wynn a stem with a pointed bowl
yogh a flat top with a curved tail
hv an h and a v joined
ou an o with a u over it
"""

_LATIN_CAPITAL = """
a two slanted strokes that meet at the top, with a crossbar
b a stem with two bowls on the right
c an open curve with its gap on the right
d a stem with one large bowl on the right
e a stem with three arms to the right
f a stem with two arms to the right
g an open curve with a bar or spur at the lower right
h two stems joined by a crossbar
i a single upright stem
j a stem that turns left at the bottom
k a stem with two slanted arms on the right
l a stem with a foot to the right
m two stems with a v between them
n two stems joined by a falling diagonal
o a large closed ring
p a stem with a bowl at the upper right
q a large ring with a tail at the lower right
r a stem with a bowl at the upper right and a slanted leg
s a large double curve like a snake
t a stem under a level top bar
u two stems joined by a bowl at the bottom
v two slanted strokes that meet at the bottom
w two letters v side by side
x two slanted strokes that cross
y two arms that meet on top of a stem
z two level bars joined by a slanted stroke
ae an A and an E joined
oe an O and an E joined
eth a D with a bar through its stem
thorn a stem with a bowl in its middle
eng an N with a tail that curls to the left
esh a sigma-like zigzag
ezh a Z with a curved lower half
schwa an e upside down, as high as a capital
"""

_GREEK_SMALL = """
alpha a round loop whose ends cross on the right
beta a stem that goes below the baseline with two bowls on the right
gamma two arms that meet and go below the baseline
delta a round bowl with a curved stroke over it
epsilon a rounded E, open on the right
zeta a flat top, a curve to the left and a small tail
eta an n whose right stem goes below the baseline
theta a tall oval with a bar across its middle
iota a short stem with a foot and no dot
kappa a short stem with two arms
lamda a long falling stroke with a leg on the left
mu a u whose left stem goes below the baseline
nu a v with a straight left arm
xi a stack of three curves with a small tail
omicron a closed ring
pi two legs under a level bar
rho a round bowl with a stem that goes below the baseline on the left
sigma a ring with a level bar to the right at its top
tau a level bar over one short stem
upsilon a bowl, open at the top
phi a ring with an upright stroke through it
chi two crossing strokes that go below the baseline
psi a bowl with an upright stroke through it
omega two bowls side by side, open at the top
"""

_GREEK_CAPITAL = """
alpha two slanted strokes that meet at the top, with a crossbar
beta a stem with two bowls on the right
gamma a stem with one arm to the right at the top
delta a triangle on its base
epsilon a stem with three arms to the right
zeta two level bars joined by a slanted stroke
eta two stems joined by a crossbar
theta a ring with a bar in its middle
iota a single upright stem
kappa a stem with two slanted arms on the right
lamda two slanted strokes that meet at the top, without a crossbar
mu two stems with a v between them
nu two stems joined by a falling diagonal
xi three level bars, one over the other
omicron a large closed ring
pi two stems under a level beam
rho a stem with a bowl at the upper right
sigma two level bars joined by an angle that points right
tau a stem under a level top bar
upsilon two arms that meet on top of a stem
phi a ring with an upright stem through it
chi two slanted strokes that cross
psi a bowl with an upright stem through it
omega a ring, open at the bottom, with two feet
"""

_CYRILLIC = """
a the shape of a Latin a
be a bowl on the lower right of a stem, with a flag at the top
ve a stem with two bowls on the right
ghe a stem with one arm to the right at the top
de a house on two short feet
ie the shape of a Latin e
io an e with two dots over it
zhe a stem with two arms on each side, like a beetle
ze two bowls over each other, open on the left, like a 3
i two stems joined by a rising diagonal, a mirrored N
short i a mirrored N with a small bowl over it
ka a stem with two slanted arms on the right
el two legs that meet under a level top, the left one slanted
em two stems with a v between them
en two stems joined by a crossbar
o a closed ring
pe two stems under a level beam
er a stem with a bowl at the upper right
es an open curve with its gap on the right
te a stem under a level top bar
u two slanted strokes that meet, one of them going on to the lower left
ef a ring with an upright stem through it
ha two slanted strokes that cross
tse two stems on a level base with a tick at the lower right
che a short bowl on the left of a stem, like a 4
sha three stems on a level base
shcha three stems on a level base with a tick at the lower right
hard sign a stem with a flag on the left at the top and a bowl at the lower right
yeru a stem with a bowl, and another stem beside it
soft sign a stem with a bowl at the lower right
e a curve open to the left with a bar in its middle
yu a stem joined to a ring
ya a mirrored R
schwa an e upside down
dje an h with a bar through its stem and a hooked foot
tshe an h with a bar through its stem
lje the letters el and soft sign joined
nje the letters en and soft sign joined
dzhe two stems on a level base with a tick in the middle
je the shape of a Latin j
dze the shape of a Latin s
yi a stem with two dots over it
ghe with upturn a stem with an arm whose end turns up
barred o a ring with a bar across its middle
straight u two arms that meet on top of a stem
yat a stem with a crossbar and a bowl at the lower right
fita a ring with a bar across its middle
izhitsa a v whose right arm curls
yus a peak with three legs
omega two bowls side by side
koppa a ring on a short stem
shha the shape of a Latin h
komi de a d-like letter with a flag
palochka a single upright stem
"""

_GEORGIAN = """
an a small bowl with a hook over it, open on the left
ban a ring with a hook over it
gan a curve like a 3 that goes below the baseline
don a loop with a tail below the baseline
en a curve like a 3 with a bowl below the baseline
vin a curve like a 3
zen a bowl with a hook at its upper left
tan a round arch, open at the bottom
in a small arch on one foot
kan an arch with a long curve below the baseline
las an arch of two or three humps
man a bowl with a tall curve over it
nar a small bowl with a hooked top
on a wide arch of two humps
"""

_ARMENIAN = """
ayb two stems joined at the bottom, with a flourish on the right
ben a stem with an arch at the top and a bar at the foot
gim a bowl with a stem on its right and a bar across
da a stem with an arch at the top and a bar on the right
ech a stem with an arch and a level bar
za a ring with an arm on the right
to a ring joined to a stem
ini a tall stem with an arch
xeh a tall stem followed by two short stems
hho a tall hooked stem with a bowl
men a stem with an arch and a hook at the top left
vo two stems joined by an arch
now a bowl with a long stem on the right
oh a closed ring
"""


def _table(text: str, known: tuple[str, ...] = ()) -> dict[str, str]:
    """Read `letter description` lines; names of several words are listed in `known`."""
    table: dict[str, str] = {}
    for line in text.strip().splitlines():
        name = next((name for name in known if line.startswith(name + " ")), line.split(" ", 1)[0])
        table[name] = line[len(name) + 1 :]
    return table


_CYRILLIC_LONG = ("short i", "hard sign", "soft sign", "ghe with upturn", "barred o", "straight u", "komi de")

SHAPES: dict[tuple[str, str], dict[str, str]] = {
    ("latin", "small"): _table(_LATIN_SMALL),
    ("latin", "capital"): _table(_LATIN_CAPITAL),
    ("greek", "small"): _table(_GREEK_SMALL),
    ("greek", "capital"): _table(_GREEK_CAPITAL),
    ("cyrillic", "small"): _table(_CYRILLIC, _CYRILLIC_LONG),
    ("cyrillic", "capital"): _table(_CYRILLIC, _CYRILLIC_LONG),
    ("georgian", ""): _table(_GEORGIAN),
    ("armenian", "small"): _table(_ARMENIAN),
}


DIGITS: dict[str, str] = {
    "digit zero": "a tall oval",
    "digit one": "an upright stem with a flag at the upper left",
    "digit two": "an arch that sweeps down to a level base",
    "digit three": "two bowls over each other, open on the left",
    "digit four": "an open or closed angle crossed by an upright stem",
    "digit five": "a flat top, a short stem and a bowl open on the left",
    "digit six": "a closed bowl at the bottom with a curve rising over it",
    "digit seven": "a level top and a slanted stem",
    "digit eight": "two closed bowls, one over the other",
    "digit nine": "a closed bowl at the top with a curve falling under it",
}


def shape_of(script: str, case: str, letter: str) -> str:
    """Return the description of a plain letter, or an empty string where none is written down."""
    return SHAPES.get((script, case), {}).get(letter, "")
