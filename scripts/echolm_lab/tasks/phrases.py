"""English of the requests: topics, frames, slot phrases and look-alike flags."""

from __future__ import annotations

#: Business units; each is told apart well by sentence embeddings.
TOPICS: tuple[str, ...] = tuple(
    """billing|payroll|warehouse|shipping|checkout|marketing|fraud|loyalty|recruiting|telemetry|
    video|chat|mapping|weather|insurance|clinic|pharmacy|hotel|airline|school|library|museum|
    energy|water|parking|taxi|bakery|brewery|farming|fishing|mining|steel|textile|furniture|
    cinema|music|podcast|gaming|casino|football|fitness|dental|veterinary|nursery|charity|
    embassy|customs|police|fire brigade|ambulance|railway|ferry|bicycle|tyre|battery|solar|
    nuclear|recycling|plumbing|roofing|gardening|cleaning|laundry|catering|coffee|wine|
    chocolate|cheese|jewellery|perfume|eyewear|toy|stationery|printing|photo|translation|
    legal|audit|treasury|mortgage|auction|rental|satellite|drone|robotics|genome""".replace(
        "\n", ""
    )
    .replace("    ", "")
    .split("|")
)

#: Goods that customers write to support about.
PRODUCTS: tuple[str, ...] = tuple(
    """toaster|espresso machine|running shoes|winter jacket|mountain bike|tent|sleeping bag|
    headphones|laptop|phone|tablet|camera|television|printer|vacuum cleaner|washing machine|
    fridge|oven|blender|kettle|lamp|sofa|mattress|desk|bookshelf|curtains|carpet|mirror|
    wrist watch|necklace|sunglasses|handbag|suitcase|umbrella|raincoat|swimsuit|yoga mat|
    treadmill|dumbbells|football|tennis racket|skis|surfboard|fishing rod|kayak|guitar|piano|
    violin|drum kit|microphone|game console|puzzle|doll|toy train|stroller|car seat|baby monitor|
    dog leash|cat tree|aquarium|bird cage|lawn mower|garden hose|barbecue|power drill|hammer|
    ladder|paint|wallpaper|door lock|smoke alarm|thermostat|solar panel|heater|air conditioner|
    razor|hair dryer|perfume|toothbrush|vitamins|wine crate|tea set|cookbook|novel|calendar|
    fountain pen|backpack""".replace("\n", "")
    .replace("    ", "")
    .split("|")
)

#: How a request opens; ``{do}`` is the verb phrase in its plain form.
FRAMES: tuple[str, ...] = (
    "{do}",
    "please {do}",
    "can you {do}",
    "I need to {do}",
    "how do I {do}",
    "we have to {do}",
    "help me {do}",
    "time to {do}",
    "could you {do} today",
    "I want to {do} now",
)

#: Slot kinds: how a request mentions a value; every phrase is used by every domain.
SLOT_PHRASES: dict[str, tuple[str, ...]] = {
    "host": ("on {}", "at {}", "on machine {}"),
    "path": ("under {}", "in {}", "at path {}"),
    "file": ("using {}", "with file {}", "from {}"),
    "date": ("since {}", "from {} on", "starting {}"),
    "name": ("for {}", "on behalf of {}", "by request of {}"),
    "order": ("for order {}", "on order {}", "order no {}"),
    "ticket": ("see ticket {}", "ticket {}", "as in ticket {}"),
    "email": ("cc {}", "mail to {}", "and notify {}"),
    "amount": ("up to {} euro", "max {} euro", "limit {} euro"),
    "version": ("at version {}", "for release {}", "version {}"),
    "time": ("at {}", "by {}", "around {}"),
    "number": ("batch {}", "number {}", "no {}"),
    "days": ("over {} days", "for {} days", "within {} days"),
    "region": ("in region {}", "in {}", "for region {}"),
    "percent": ("above {} percent", "over {} percent", "beyond {} percent"),
}

#: Look-alike flags: (phrases of one intent, phrases of its look-alike).
FLAGS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("including archived ones", "archived ones included"),
        ("excluding archived ones", "archived ones excluded"),
    ),
    (
        ("and keep the old copy", "keeping the old copy"),
        ("and do not keep the old copy", "not keeping the old copy"),
    ),
    (("with approval", "after approval"), ("without approval", "skipping approval")),
    (("as a dry run", "only a dry run"), ("for real, no dry run", "not as a dry run")),
    (("for internal users", "internal users only"), ("for external users", "external users only")),
    (("and tell the team", "team informed"), ("but do not tell the team", "team not informed")),
    (("before midnight", "ahead of midnight"), ("after midnight", "past midnight")),
    (("with encryption", "encrypted"), ("without encryption", "unencrypted")),
    (("if it is active", "while active"), ("if it is not active", "while not active")),
    (("in express mode", "express mode on"), ("in economy mode", "economy mode on")),
)
