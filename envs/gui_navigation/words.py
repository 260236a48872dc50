"""The names of screens and icons: one vocabulary for trees in distribution, one apart from it for those out of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """Screens are named by one word, or where there are more screens than words by two."""

    screens: tuple[str, ...]
    icons: tuple[str, ...]

    @classmethod
    def of(cls, screens: str, icons: str) -> Vocabulary:
        return cls(tuple(screens.split()), tuple(icons.split()))


INSIDE = Vocabulary.of(
    screens="""
Account Albums Archive Billing Bookings Calendar Calls Camera Charts Chat Classes Clock Contacts Coupons
Display Downloads Drafts Events Family Favorites Files Fitness Friends Games Goals Groups Guides Health Inbox
Invoices Journal Language Library Lists Maps Market Meetings Memories Movies Music News Notes Orders Parking
Payments Photos Podcasts Privacy Profile Projects Radio Recipes Reports Safety Schedule Security Settings
Shopping Sounds Sports Storage Tasks Team Tickets
""",
    icons="""
anchor apple arrow bag bell bird book bulb card cat chair cloud coin cup dice disk dog door drop fan fish flag
flame flower folder gear gift globe hat heart house key lamp leaf lens lock moon note pen pin plug rocket
shield star sun tag train tree
""",
)
OUTSIDE = Vocabulary.of(
    screens="""
Airlock Ballast Beacon Bilge Bridge Bunker Cabin Cargo Chapel Cistern Cockpit Console Conveyor Crane Deck
Depot Diagnostics Drydock Dynamo Engine Exhaust Foundry Freight Furnace Gallery Galley Gantry Gauges Generator
Gyro Hangar Harbor Hatch Helm Hold Hull Hydraulics Ignition Intake Keel Ladder Locker Manifold Mast Mooring
Nacelle Observatory Pantry Periscope Piston Pump Quarry Radar Reactor Refinery Rigging Rudder Sonar Tanker
Tower Turbine Vault Winch Workshop
""",
    icons="""
anvil axle badge barrel basin bolt brick broom brush bucket cable candle chain clamp cog compass crate crown
dial drill feather fork funnel gong hammer harp hook horn kettle knot lever magnet mallet mirror nail needle
paddle pipe plank rope saw scale shovel spool spring sponge torch wheel
""",
)
