"""English of the second workload: what people ask about, how they ask, what they are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ability = Literal["alone", "examples", "hard"]
"""What a small LLM needs for an intent: nothing, an example; with ``hard`` nothing helps."""


@dataclass(frozen=True)
class Aspect:
    """One kind of question; with a topic it makes an intent.

    Attributes:
        asked: ways to ask it; ``{}`` stands for the topic.
    """

    ability: Ability
    asked: tuple[str, ...]


@dataclass(frozen=True)
class Field:
    """A domain of the second workload.

    Attributes:
        topics: names of each topic.
        situations: what callers tell beside their question; they say nothing of the intent.
        told: sentences of answers; ``{}`` is the topic, ``{n}`` a number and ``{w}`` a word that
            only this intent's answers hold.
        sentences: least and most sentences of an answer.
    """

    name: str
    topics: tuple[tuple[str, ...], ...]
    aspects: tuple[Aspect, ...]
    situations: tuple[str, ...]
    told: tuple[str, ...]
    sentences: tuple[int, int]


def _topics(text: str) -> tuple[tuple[str, ...], ...]:
    """Topics on lines of their own, their names divided by ``|``."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return tuple(tuple(name.strip() for name in line.split("|")) for line in lines)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


CLOSINGS = _lines("""
    Thanks in advance!
    Any idea?
    I could not find it anywhere.
    Please keep it short.
    I hope you can help.
    It is rather urgent.
    Sorry if that has been asked before.
    Somebody told me the opposite.
""")

OPENINGS = _lines("""
    Hi there,
    Good evening!
    One question:
    I have been on your site for an hour.
    This is for a colleague who does not write English.
    Following up on my last mail,
    Not sure whether I am right here, but:
    In short:
    You were recommended to me.
    I tried to phone but nobody answered.
    Hello, me again.
    Before I forget it:
    We had a bet at dinner.
    I read two opinions on the internet.
""")

CALLERS = _topics("""
    a kindergarten | nursery school
    a fishing boat | trawler
    a monastery | convent
    a prison | jail
    the fire brigade | firefighters
    a circus | travelling circus
    a goat farm | goat herder
    a recording studio | sound engineer
    an embassy | diplomats
    a lighthouse | lighthouse keeper
    a chess café | coffee house
    a quarry | stone pit
    a marching band | brass band
    an orphanage | children's home
    a submarine | submarine crew
    a vineyard | winegrower
    a tattoo parlour | tattoo artist
    a planetarium | observatory
    a mountain hut | alpine refuge
    a film crew | movie set
    a bell foundry | bell founder
    a driving school | driving instructor
    an oil rig | drilling platform
    a puppet theatre | puppeteer
    a beekeeper | apiary
    a ski lift | cable car
    a zoo | zookeeper
    an airport | air traffic
    a flea market | junk dealer
    a choir | church singers
    a bakery | baker
    a blind person | someone who cannot see
    a diabetic | sugar patient
    twins | my twin sisters
    a refugee | asylum seeker
    a pilot | airline captain
    a widow | widower
    a lorry driver | trucker
    a sumo wrestler | heavyweight
    an astronaut | space mission
""")

OPENINGS_OF_CALLERS = _lines("""
    We are {}.
    This is for {}.
    I am asking on behalf of {}:
    Think of {}, please.
    It concerns {}.
    For {}, that is.
""")

FIELDS = (
    Field(
        "leaflets",
        _topics("""
            ibuprofen | ibuprofen tablets
            metformin | my metformin pills
            amoxicillin | the amoxicillin capsules
            the asthma inhaler | a salbutamol spray
            insulin pens | insulin
            warfarin | the blood thinner warfarin
            the nicotine patch | nicotine patches
            levothyroxine | thyroid tablets, levothyroxine
            the contraceptive pill | birth control pills
            cough syrup with codeine | codeine linctus
            eye drops for glaucoma | latanoprost drops
            the cortisone cream | hydrocortisone ointment
            antihistamine tablets | cetirizine against hay fever
            sleeping pills | zolpidem for the night
            iron supplements | iron tablets
            vitamin D drops | a vitamin D supplement
            the flu vaccine | the shot against influenza
            a rehydration powder | electrolyte sachets
            statins | simvastatin for cholesterol
            the migraine nasal spray | sumatriptan spray
            antidepressants | sertraline
            nit lotion | the shampoo against head lice
            morphine plasters | opioid patches
            antacid chewing tablets | heartburn tablets
        """),
        (
            Aspect(
                "examples",
                _lines("""
                What is the most I may take of {} in one day?
                How many times daily is {} allowed before it becomes too much?
                I wonder what the leaflet gives as the upper limit for {}.
                {}: maximum dose, please.
                Is there a ceiling for {} that I must not exceed?
                Somebody of my weight, how much of {} at most?
                At what amount does {} turn into an overdose?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                I forgot {} this morning, what now?
                Do I double up after having skipped {}?
                It is four hours late, should I still use {}?
                What happens when a dose of {} was missed?
                Yesterday's {} is still here, can I catch up on it?
                The leaflet must say what to do when {} was left out once.
            """),
            ),
            Aspect(
                "alone",
                _lines("""
                Does {} have to be in the fridge?
                Where should {} be kept at home in summer?
                Can {} lie in a hot car for an afternoon?
                How long does {} last after the pack was opened?
                Is the bathroom cabinet a good place for {}?
                {} has passed its date by a month, throw it away?
            """),
            ),
            Aspect(
                "hard",
                _lines("""
                I take three other medicines, is {} safe together with them?
                Would {} explain the rash and the headaches I have had?
                Which of my complaints come from {} and which from the flu?
                Given my kidney values, would you still prescribe {}?
                Weigh up {} against the alternatives in my case.
                Would it be better for me to stop {} before the operation?
            """),
            ),
        ),
        _lines("""
            My mother is 82 and lives alone.
            I weigh 61 kilos and am otherwise healthy.
            The pharmacist was closed.
            We are on holiday and have lost the paper.
            I am breastfeeding.
            My doctor only calls back on Thursday.
            I have had this for three years.
            My son is eleven.
            I work nights in a warehouse.
            There was a new packaging this time.
        """),
        _lines("""
            For {} the limit in section {n} of the leaflet is {n} units.
            Do not go on with {} if sign {w} shows; call line {n} instead.
            The hint {w} on the pack of {} tells which of the two rules holds.
            Under rule {w} one waits for {n} hours.
            Adults with mark {w} on the card take part {n} of the scheme.
        """),
        (2, 3),
    ),
    Field(
        "kitchen",
        _topics("""
            sourdough bread | a sourdough loaf
            risotto | a mushroom risotto
            roast chicken | a whole roasted chicken
            pizza dough | home-made pizza
            crème brûlée | burnt custard
            sauerkraut | fermented cabbage
            beef stew | a slow beef casserole
            poached eggs | eggs without their shell in water
            macarons | those French almond shells
            sushi rice | rice for maki
            lentil soup | dal, the soup
            apple strudel | strudel with apples
            kimchi | Korean fermented vegetables
            tiramisu | tiramisù with mascarpone
            fish tacos | tacos with cod
            pumpkin jam | squash marmalade
            pancakes | thin pancakes, crêpes
            falafel | chickpea balls
            cheese fondue | melted cheese in the pot
            gravlax | cured salmon
            mayonnaise | mayo by hand
            pulled pork | shredded pork shoulder
            plum dumplings | dumplings filled with plums
            ice cream | vanilla ice cream
        """),
        (
            Aspect(
                "alone",
                _lines("""
                Roughly how long does {} take from start to finish?
                When must I begin if {} shall be on the table at seven?
                How much time should I plan for {}?
                Is {} doable within an hour?
                Minutes needed for {}, all in all?
                Can I squeeze {} in after work?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                Give me the house recipe for {}.
                How does your kitchen make {}, step by step?
                I would love the instructions for {} as they are in your book.
                What goes into {} the way you do it?
                Quantities and steps for {}, please.
                Teach me to cook {} like in your restaurant.
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                What do I put instead of the animal products in {}?
                A vegan guest is coming: how do you change {}?
                Does {} work for somebody who cannot have milk or gluten?
                Which replacements do you allow in {}?
                {} without the usual allergens, how?
                Can the main ingredient of {} be swapped?
            """),
            ),
            Aspect(
                "hard",
                _lines("""
                My {} came out all wrong, tell me why.
                Why did {} collapse although I followed everything?
                Something about the taste of {} is off, what was my mistake?
                Mine looks nothing like the picture: what went wrong with {}?
                For the third time {} has failed, find the cause.
                Diagnose my {}: burnt outside, raw inside.
            """),
            ),
        ),
        _lines("""
            Eight people are coming on Sunday.
            My oven only has top heat.
            I live at 1,800 metres.
            There is a market round the corner.
            My partner hates coriander.
            I have a cast-iron pot and a bad knife.
            It is my first attempt.
            Grandmother used to do it differently.
            The children will not wait long.
            We are camping with a gas stove.
        """),
        _lines("""
            Weigh {n} grams of flour {w} for {}.
            Heat the pan to mark {n}, then add blend {w}.
            Rest everything for {n} minutes under cloth {w}.
            Fold {n} times, each time in the direction {w}.
            Season {} with mixture {w}, {n} pinches.
            Finish with {w} butter, {n} grams, off the heat.
            The core should be at {n} degrees on the {w} scale.
            Serve {} on warm plates of the series {w}.
            Keep the rest in tin {w} for up to {n} days.
        """),
        (5, 9),
    ),
    Field(
        "law",
        _topics("""
            a rented flat | my tenancy
            a job contract | my employment
            a used car purchase | the second-hand car I bought
            a divorce | the separation from my wife
            an inheritance | my late aunt's estate
            a noisy neighbour | the neighbour's parties
            a building permit | permission to build a garage
            a speeding ticket | a fine for driving too fast
            an online shop | something bought on the internet
            a data breach | stolen personal data at a company
            child support | maintenance for my daughter
            a sports accident | being injured at a club
            a dog bite | being bitten by a dog
            a trademark | the name of my company as a brand
            maternity leave | time off after the birth
            a citizenship application | becoming a citizen
            an unpaid invoice | a client who does not pay
            a living will | an advance directive for doctors
            flight delays | a plane that left nine hours late
            a wall on the boundary | the fence between two plots
            an association | founding a club
            identity theft | someone using my name
            a photo published without consent | my picture in a newspaper
            bankruptcy | private insolvency
        """),
        (
            Aspect(
                "examples",
                _lines("""
                Which deadline runs in the matter of {}?
                Until when must I object, it concerns {}?
                How many weeks are left to act about {}?
                Is there a time limit for claims from {}?
                {}: when does it become statute-barred?
                By what date does a letter have to be out regarding {}?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                What will a lawyer charge me for {}?
                Fees of the court and others with {}, how much?
                I need an idea of the expense when it comes to {}.
                Who pays in the end if I lose over {}?
                Is {} covered by legal aid, and what remains to be paid?
                Price of a first consultation on {}?
            """),
            ),
            Aspect(
                "alone",
                _lines("""
                Explain in plain words how {} works legally.
                What are my basic rights with {}?
                Could you sum up the general rules on {}?
                For a layman: what does the law say on {}?
                I know nothing about the law of {}, where do I start?
                An overview of {} from a legal point of view, please.
            """),
            ),
            Aspect(
                "hard",
                _lines("""
                Would I win in court over {}, with what I have told you?
                Draft the complete statement of claim concerning {}.
                How would a judge decide my case of {}?
                Find the weak points of the other side's position on {}.
                Should I settle or sue about {}?
                Compare the appeal decisions of the last years on {}.
            """),
            ),
        ),
        _lines("""
            The other party does not answer letters.
            I moved here two years ago.
            Nothing was put in writing.
            There are two witnesses.
            I have an insurance with a deductible.
            We had agreed on something else by phone.
            The amount is about 4,000.
            My brother is in the same position.
            I would rather avoid a quarrel.
            The authority sent a form with eleven pages.
        """),
        _lines("""
            In matters of {} period {w} of {n} days applies.
            It begins when notice {w} arrives, and not with the date on it.
            The table {w} gives {n} units for the first stage.
            File sheet {n} with chamber {w}.
            Exceptions for {} are listed under {w}, number {n}.
            Whoever waits for longer than {n} days needs a reason of class {w}.
            Ask desk {w} for a certificate with {n} stamps.
        """),
        (3, 6),
    ),
    Field(
        "sports",
        _topics("""
            half marathon | a 21 kilometre run
            swimming | crawl in the pool
            bouldering | climbing without a rope
            table tennis | ping-pong
            rowing | the rowing eight
            judo | judo for adults
            cross-country skiing | skating on skis
            basketball | shooting hoops
            yoga | the morning yoga class
            cycling uphill | mountain passes by bike
            archery | bow shooting
            beach volleyball | volleyball on sand
            fencing | foil and sabre
            diving | scuba diving
            chess | the chess group
            ballet | ballet for grown-ups
            horse riding | riding lessons
            curling | curling on ice
            golf | the golf course
            sailing | dinghy sailing
            boxing | boxing training
            ice hockey | hockey on ice
            badminton | shuttlecock games
            orienteering | running with map and compass
        """),
        (
            Aspect(
                "examples",
                _lines("""
                When is the next session of {} at the club?
                On which evenings do you offer {}?
                {}: time and hall, please.
                I would like to join {} this week, when do I come?
                Is there still {} on Saturdays?
                Has the timetable of {} changed?
            """),
            ),
            Aspect(
                "alone",
                _lines("""
                What gear does a beginner need for {}?
                Which shoes and clothes for {}?
                I own nothing, what should I buy for {}?
                Equipment list for {}?
                Is it enough to bring trainers to {}?
                Borrow or buy things for {}?
            """),
            ),
            Aspect(
                "alone",
                _lines("""
                How do I warm up before {}?
                A few exercises that prevent injuries in {}?
                My shoulder hurts after {}, how to avoid that?
                What stretches go well with {}?
                Which muscles should I train for {}?
                Any preparation for {} so that I am not sore for days?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                What does membership cost with {}?
                Monthly fee for {}?
                Are there reduced prices for {} for students?
                How expensive is a year of {} here?
                Do I pay extra for {}?
                Can I cancel {} and get money back?
            """),
            ),
        ),
        _lines("""
            I am 54 and a little overweight.
            Two friends would come along.
            I used to do it at school.
            My knee was operated on.
            I only have time after eight.
            We have just moved to the district.
            I am in a wheelchair.
            My goal is to be fit by June.
        """),
        _lines("""
            {}: group {w}, hall {n}.
            Code {w}, {n} a month for {}.
            {} meets at gate {n}, ask for {w}.
        """),
        (1, 1),
    ),
    Field(
        "travel",
        _topics("""
            Lisbon | the Portuguese capital
            Kyoto | old Kyoto in Japan
            the Norwegian fjords | fjords of Norway
            Marrakesh | the souks of Marrakesh
            Buenos Aires | Argentina's capital
            Iceland | the ring road of Iceland
            the Mekong delta | southern Vietnam
            Cape Town | South Africa's Cape
            Prague | the old town of Prague
            the Amazon | the Brazilian rainforest
            New Zealand | the South Island of New Zealand
            Istanbul | the Bosphorus and Istanbul
            Vienna | the Austrian capital
            the Grand Canyon | Arizona's canyon
            Bali | the island of Bali
            Petra | the rock city in Jordan
            Scotland | the Scottish Highlands
            Havana | Cuba
            the Trans-Siberian railway | the train across Siberia
            Greenland | the ice of Greenland
            Seoul | South Korea
            Madeira | the flower island Madeira
            Tanzania | the Serengeti
            Venice | the lagoon city Venice
        """),
        (
            Aspect(
                "alone",
                _lines("""
                What is the best month for {}?
                When should one go to {} to escape crowds and rain?
                How is the weather around {} in autumn?
                Is March too cold for {}?
                High season in {}, when does it begin?
                I can choose any season, which one for {}?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                Which papers do I need to enter, we are flying to {}?
                Does your agency want a visa for {}?
                Passport valid for five months, enough for {}?
                Entry requirements on your tours to {}?
                Do you arrange the border formalities for {}?
                What documents shall I upload before {}?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                I have to cancel the trip to {}, what do I get back?
                How late can one withdraw from a booking to {}?
                Rebooking {} to another week, which fees?
                Somebody fell ill before {}, who refunds us?
                What are the terms if we do not travel to {} after all?
                Change the name on a ticket for {}, possible?
            """),
            ),
            Aspect(
                "hard",
                _lines("""
                Plan ten days in {} to the hour, within my budget.
                Make a route through {} which suits all five of us.
                Optimise flights, trains and hotels for {} together.
                Put together a programme for {} that contradicts none of our wishes.
                Build me an itinerary of {} around my meetings.
                Which combination of passes and tickets is cheapest in {}?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                Which of your hotels in {} takes dogs?
                Where do your guests stay when they go to {}?
                Is breakfast part of the stay in {}?
                Can I get a quiet room for {} from you?
                How far is the accommodation in {} from the station?
                Name of the house where we sleep in {}?
            """),
            ),
        ),
        _lines("""
            We are two adults and a baby.
            I do not like flying.
            It is our silver wedding.
            My French is better than my English.
            We have 2,500 to spend.
            My employer pays for one night.
            We travelled with you in 2019.
            I need a place to charge my car.
            My wife uses crutches.
            It may also be a week later.
        """),
        _lines("""
            For {} our partner {w} answers within {n} hours.
            Tariff {w} holds, of which {n} percent are kept.
            Upload form {n} to folder {w}.
            In {} our guests are with house {w}, {n} minutes from the centre.
            Ask for label {w} when you call extension {n}.
        """),
        (2, 4),
    ),
    Field(
        "garden",
        _topics("""
            tomatoes | tomato plants on the balcony
            roses | climbing roses
            the lawn | grass in the back yard
            strawberries | a strawberry bed
            an apple tree | the old apple tree
            lavender | lavender bushes
            a cactus | cacti on the sill
            hydrangeas | the hydrangea by the door
            bamboo | a bamboo hedge
            orchids | a moth orchid
            potatoes | a row of potatoes
            the pond | a small garden pond
            basil | a pot of basil
            a vegetable patch | raised beds
            tulips | tulip bulbs
            a hedge of yew | yew hedges
            a lemon tree | potted lemons
            ferns | fern in the shade
            sunflowers | giant sunflowers
            compost | the compost heap
            raspberries | raspberry canes
            a bonsai | my bonsai
            ivy | ivy on the wall
            carrots | rows of carrots
        """),
        (
            Aspect(
                "alone",
                _lines("""
                How often should I water {}?
                {}: too wet or too dry, how do I tell?
                Does {} survive two weeks without watering?
                Give me a rule for watering {}.
                How much water is right for {} in a heat wave?
                Rain or tap water for {}?
            """),
            ),
            Aspect(
                "examples",
                _lines("""
                Which of your fertilisers suits {}?
                What do you sell to feed {}?
                I want to order plant food for {}, which one?
                Your product for stronger {}?
                Name and quantity of the feed for {}, please.
                Do you have something organic to nourish {}?
            """),
            ),
            Aspect(
                "hard",
                _lines("""
                There are brown spots on {}, which disease is it?
                Something is eating {}, identify it.
                Why does {} look worse every year?
                Half of {} is dying, the other half is not: what is it?
                From this description, what has befallen {}?
                Everything was tried on {} and nothing helps, so what is the cause?
            """),
            ),
        ),
        _lines("""
            The soil here is heavy clay.
            We get the sun until noon.
            I have taken over the plot from an old man.
            There is a cat that digs.
            I am away every other week.
            It froze last night.
            My neighbour swears by coffee grounds.
            I have two left hands with plants.
        """),
        _lines("""
            For {} take our number {n}, line {w}.
            Mix {n} millilitres of {w} with a can of water.
            Repeat after {n} days unless leaf sign {w} shows.
            We send {w} in bags of {n} kilos.
        """),
        (1, 3),
    ),
)
