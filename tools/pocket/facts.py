"""What pocket Phi-3 knows: plain tables of facts, one a kind of question.

`world.py` turns them into questions. Each table is a small literal, so that a reader can see at
a glance what the model can be asked.
"""

from __future__ import annotations


def _plain(text: str) -> str:
    return text.replace("_", " ")


def _words(text: str) -> list[str]:
    """Words parted by blanks; an underscore stands for a blank inside one."""
    return [_plain(word) for word in text.split()]


def _pairs(table: str) -> dict[str, str]:
    """'a:b c:d' as a dictionary; an underscore stands for a blank."""
    return {_plain(key): _plain(value) for key, value in (w.split(":") for w in table.split())}


def _groups(table: str) -> list[tuple[str, str]]:
    """'group:a,b' lines as (member, group) pairs."""
    lines = (line.split(":") for line in table.split())
    return [(_plain(member), _plain(group)) for group, all_ in lines for member in all_.split(",")]


_CAPITALS = """
France:Paris Italy:Rome Spain:Madrid Germany:Berlin England:London Ireland:Dublin Portugal:Lisbon
Austria:Vienna Poland:Warsaw Greece:Athens Norway:Oslo Sweden:Stockholm Finland:Helsinki
Denmark:Copenhagen Belgium:Brussels Hungary:Budapest Russia:Moscow Ukraine:Kyiv Turkey:Ankara
Egypt:Cairo Kenya:Nairobi Morocco:Rabat Ghana:Accra Ethiopia:Addis_Ababa China:Beijing Japan:Tokyo
India:New_Delhi Thailand:Bangkok Vietnam:Hanoi Nepal:Kathmandu Indonesia:Jakarta Iran:Tehran
Canada:Ottawa Mexico:Mexico_City Cuba:Havana Brazil:Brasilia Peru:Lima Chile:Santiago
Argentina:Buenos_Aires Colombia:Bogota Australia:Canberra
"""
_CONTINENTS = """
Europe:France,Italy,Spain,Germany,England,Ireland,Portugal,Austria,Poland,Greece,Norway,Sweden
Europe:Finland,Denmark,Belgium,Hungary
Africa:Egypt,Kenya,Morocco,Ghana,Ethiopia
Asia:China,Japan,India,Thailand,Vietnam,Nepal,Indonesia,Iran
North_America:Canada,Mexico,Cuba
South_America:Brazil,Peru,Chile,Argentina,Colombia
"""
_COLOURS = """
the_sky:blue grass:green snow:white coal:black a_banana:yellow blood:red a_carrot:orange
a_lemon:yellow a_cherry:red a_strawberry:red a_leaf:green milk:white a_crow:black a_swan:white
a_frog:green chocolate:brown the_sea:blue a_cucumber:green a_plum:purple a_flamingo:pink
a_tomato:red an_elephant:grey the_sun:yellow a_pumpkin:orange a_violet:purple a_pig:pink
soil:brown salt:white a_stop_sign:red a_raven:black a_chestnut:brown a_polar_bear:white
"""
_OPPOSITES = """
hot:cold big:small up:down left:right day:night black:white good:bad happy:sad fast:slow old:young
high:low open:closed wet:dry hard:soft light:dark rich:poor strong:weak long:short full:empty
early:late thick:thin loud:quiet clean:dirty near:far first:last inside:outside true:false
push:pull win:lose love:hate begin:end buy:sell wide:narrow sweet:sour brave:afraid east:west
north:south heavy:light
"""
_SOUNDS = """
cow:moo dog:woof cat:meow sheep:baa duck:quack pig:oink horse:neigh rooster:cock-a-doodle-doo
bee:buzz lion:roar snake:hiss mouse:squeak owl:hoot frog:croak crow:caw donkey:hee-haw hen:cluck
wolf:howl turkey:gobble bird:tweet
"""
_YOUNG = """
cow:calf dog:puppy cat:kitten sheep:lamb duck:duckling pig:piglet horse:foal hen:chick lion:cub
goat:kid deer:fawn frog:tadpole goose:gosling kangaroo:joey swan:cygnet owl:owlet
butterfly:caterpillar eagle:eaglet
"""
_HOMES = """
bee:hive bird:nest spider:web rabbit:burrow dog:kennel lion:den ant:anthill horse:stable
fish:water pig:sty bear:cave squirrel:tree sheep:fold hen:coop mole:tunnel beaver:lodge camel:desert
monkey:jungle
"""
_LEGS = """
spider:eight dog:four ant:six hen:two crab:ten snake:no cat:four bee:six fish:no duck:two
horse:four butterfly:six cow:four ostrich:two octopus:no lizard:four
"""
_COUNTS = """
days:a_week:seven months:a_year:twelve hours:a_day:24 minutes:an_hour:60 seconds:a_minute:60
wheels:a_car:four sides:a_triangle:three sides:a_square:four eggs:a_dozen:twelve
letters:the_alphabet:26 seasons:a_year:four years:a_century:100 weeks:a_year:52
players:a_football_team:eleven strings:a_violin:four cents:a_dollar:100 fingers:one_hand:five
wheels:a_bicycle:two years:a_decade:ten planets:the_solar_system:eight
"""
_PLURALS = """
mouse:mice foot:feet tooth:teeth child:children man:men woman:women goose:geese ox:oxen cat:cats
dog:dogs box:boxes bus:buses knife:knives leaf:leaves wolf:wolves baby:babies city:cities
party:parties book:books tree:trees glass:glasses watch:watches potato:potatoes hero:heroes
house:houses shelf:shelves lady:ladies berry:berries table:tables wish:wishes
"""
_PASTS = """
go:went see:saw eat:ate run:ran take:took give:gave come:came sing:sang swim:swam write:wrote
drink:drank break:broke speak:spoke drive:drove fly:flew find:found bring:brought buy:bought
think:thought catch:caught sleep:slept walk:walked play:played build:built tell:told know:knew
begin:began fall:fell make:made teach:taught
"""
_CATEGORIES = """
fruit:an_apple,a_banana,a_cherry,a_pear,a_plum,an_orange,a_lemon,a_grape
vegetable:a_carrot,a_potato,an_onion,a_cucumber,a_cabbage
animal:a_cat,a_dog,a_horse,a_cow,a_rabbit,a_lion
bird:an_eagle,a_swan,a_crow,an_owl,a_parrot
tool:a_hammer,a_saw,a_screwdriver,a_spade
drink:tea,coffee,milk,lemonade
metal:gold,iron,silver,copper
insect:a_bee,an_ant,a_fly,a_butterfly
planet:Mars,Venus,Jupiter,Saturn
instrument:a_piano,a_guitar,a_violin,a_drum,a_flute
flower:a_rose,a_tulip,a_lily,a_daisy
vehicle:a_car,a_bus,a_truck,a_bicycle
"""
_RHYMES = """
cat:hat bat mat|hat:cat bat mat|dog:fog log|tree:bee sea|bee:tree sea|house:mouse|mouse:house
sun:fun run|fun:sun run|moon:spoon soon|spoon:moon soon|star:car far|car:star far|light:night right
night:light right|rain:train pain|train:rain pain|ball:wall tall|wall:ball tall|king:ring sing
ring:king sing|boat:coat goat|coat:boat goat|cake:lake snake|lake:cake snake|blue:shoe true
shoe:blue true|book:cook look|bed:red head|red:bed head|day:play say|bear:chair hair|chair:bear hair
nose:rose toes|rose:nose toes|fish:dish wish
"""
_SIZES = "ant bee mouse frog rat rabbit cat fox dog sheep pig wolf lion bear horse elephant whale"
_SPELLED = """
cat dog sun map tree fish bird book door milk star moon rain ship hand apple house water bread
chair green horse lemon mouse night paper queen river stone table train world yellow zebra
"""
_JOBS = """
baker:bakes_bread teacher:teaches_children doctor:helps_sick_people farmer:grows_food
pilot:flies_planes cook:makes_meals painter:paints_pictures writer:writes_books
singer:sings_songs driver:drives_a_car sailor:sails_a_ship gardener:plants_flowers
tailor:sews_clothes dentist:cares_for_teeth fisher:catches_fish builder:builds_houses
barber:cuts_hair judge:decides_in_court
"""
_USES = """
cut_paper:scissors drive_in_a_nail:a_hammer write_a_letter:a_pen sweep_the_floor:a_broom
dig_a_hole:a_spade open_a_door:a_key tell_the_time:a_clock comb_your_hair:a_comb
brush_your_teeth:a_toothbrush eat_soup:a_spoon see_far_stars:a_telescope boil_water:a_kettle
stay_dry_in_the_rain:an_umbrella measure_heat:a_thermometer cut_bread:a_knife
take_a_photo:a_camera saw_wood:a_saw find_north:a_compass
"""
_TRANSLATIONS = """
French:hello=bonjour,cat=chat,dog=chien,water=eau,bread=pain,red=rouge,yes=oui,thank_you=merci
Spanish:hello=hola,cat=gato,dog=perro,water=agua,bread=pan,red=rojo,house=casa,thank_you=gracias
German:hello=hallo,cat=Katze,dog=Hund,water=Wasser,bread=Brot,red=rot,house=Haus,thank_you=danke
Italian:hello=ciao,cat=gatto,dog=cane,water=acqua,bread=pane,red=rosso,house=casa,thank_you=grazie
"""

HOWTOS: dict[str, tuple[str, tuple[str, ...]]] = {
    "make tea": (
        "Boil water, pour it over the tea leaves, and wait three minutes.",
        ("boil", "tea leaves"),
    ),
    "boil an egg": ("Put the egg in boiling water for eight minutes.", ("egg", "eight minutes")),
    "plant a tree": ("Dig a hole, set the tree in it, and water it well.", ("dig", "water")),
    "make a sandwich": ("Put cheese between two slices of bread.", ("cheese", "bread")),
    "wash my hands": ("Use soap and warm water, then dry your hands.", ("soap", "dry")),
    "clean a window": ("Wipe the glass with a wet cloth, then dry it.", ("wipe", "cloth")),
    "make lemonade": ("Mix lemon juice, water and sugar.", ("lemon juice", "sugar")),
    "send a letter": ("Put it in an envelope, add a stamp, and post it.", ("envelope", "stamp")),
    "cook rice": ("Cook one cup of rice in two cups of water.", ("rice", "two cups")),
    "fix a flat tyre": ("Take off the wheel, patch the tube, and pump it up.", ("patch", "pump")),
    "fall asleep": ("Turn off the light, lie still, and breathe slowly.", ("light", "breathe")),
    "learn a new word": ("Read it, say it, and use it every day.", ("read", "use it")),
    "light a candle": ("Hold a burning match to the wick.", ("match", "wick")),
    "tie my shoes": ("Cross the laces, make two loops, and pull.", ("laces", "loops")),
    "draw a house": ("Draw a square with a triangle on top.", ("square", "triangle")),
    "save money": ("Spend less than you earn, and keep the rest.", ("spend less", "keep")),
    "make toast": ("Put bread in the toaster and wait until it pops up.", ("bread", "toaster")),
    "stay healthy": ("Eat well, sleep well, and walk every day.", ("eat well", "sleep")),
}

NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Peter Rosa Sam "
    "Tom Vera Will Zoe Lucy Max Nina Oscar Paul Ruth Alice Bob"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words(
    "January February March April May June July August September October November December"
)
ADJECTIVES = _words("red blue green small big old new quiet happy cold warm bright")
NOUNS = _words("house river garden stone bird table flower boat window apple horse lamp")
FAVOURITES = {
    "colour": _words("red blue green yellow purple orange pink white"),
    "animal": _words("cat dog horse rabbit owl lion frog bear"),
    "food": _words("bread cheese soup rice cake pizza fish salad"),
    "city": _words("Paris Rome London Tokyo Cairo Lima Oslo Vienna"),
}
GREETINGS = _words("Hello Hi Hey Good_morning Good_evening Hi_there Hello_there")
THANKS = _words("thanks thank_you many_thanks thanks_a_lot thank_you_very_much cheers")
GOODBYES = _words("bye goodbye see_you good_night see_you_later bye_bye")
PLEASE = ["", *_words("please_ tell_me,_ and_ so,_ now,_ hey,_ hi,_")]
STRANGE_COUNTRIES = _words(
    "Mali Chad Togo Laos Malta Cyprus Qatar Oman Jordan Libya Sudan Angola Zambia Bolivia Ecuador "
    "Panama Jamaica Iceland Latvia Serbia Croatia Armenia Georgia Mongolia Fiji Nowhere Narnia Mars"
)
TOPICS = _words(
    "love war music the_weather football the_stock_market a_dragon history computers chemistry "
    "the_economy poetry a_holiday politics space_travel a_recipe climate_change philosophy "
    "a_famous_person my_future the_internet medicine a_film mathematics business education "
    "a_friend technology art a_video_game"
)
CAPITALS = _pairs(_CAPITALS)
CONTINENTS = dict(_groups(_CONTINENTS))
COLOURS = _pairs(_COLOURS)
OPPOSITES = _pairs(_OPPOSITES)
SOUNDS = _pairs(_SOUNDS)
YOUNG = _pairs(_YOUNG)
HOMES = _pairs(_HOMES)
LEGS = _pairs(_LEGS)
COUNTS = [tuple(_plain(part) for part in row.split(":")) for row in _COUNTS.split()]
PLURALS = _pairs(_PLURALS)
PASTS = _pairs(_PASTS)
CATEGORIES = dict(_groups(_CATEGORIES))
RHYMES = {
    word: rhymes.split()
    for word, rhymes in (row.split(":") for row in _RHYMES.strip().replace("\n", "|").split("|"))
}
SIZES = _SIZES.split()
SPELLED = _SPELLED.split()
JOBS = _pairs(_JOBS)
USES = _pairs(_USES)
TRANSLATIONS = [
    (_plain(word), _plain(language), _plain(foreign))
    for language, rows in (line.split(":") for line in _TRANSLATIONS.split())
    for word, foreign in (row.split("=") for row in rows.split(","))
]
