"""Words of 2 to 7 letters that the mock data set writes, and the rule that keeps some of them for testing."""

from __future__ import annotations

import zlib

TEST_SHARE = 8
"""One string in so many belongs to the test split."""

WORDS = tuple(
    dict.fromkeys(
        """
        ace act add age ago aim air ale ant ape apt arc ark arm art ash ask axe bad bag ban bar bat bay bed
        bee beg bet big bin bit bow box boy bud bug bun bus but buy cab can cap car cat cob cod cow cry cub
        cup cut dad dam day den dew dig dip dog dot dry due dug ear eat ebb egg elf elm end era eve eye fan
        far fat fax fed few fig fin fir fit fix fly foe fog fox fun fur gap gas gem get gum gun gut gym ham
        hat hay hen her hex hid hip hit hop hot how hub hug hut ice ink inn jam jar jaw jet job jog joy jug
        key kid kin kit lab lad lap law lay leg let lid lip lot low mad man map mat may men met mix mob mop
        mud mug nap net new nod now nut oak oar oat odd off oil old one orb our out owl own pad pan paw pay
        pea pen pet pie pig pin pit pod pop pot pub pup put rag ram ran rap rat raw ray red rib rid rim rip
        rob rod rot row rub rug run rye sad sap sat saw say sea set sew sky sly sob son soy spa spy sum sun
        tab tag tan tap tar tax tea ten tie tin tip toe ton top toy tub tug two use van vet vow wag war wax
        way web wed wet who why wig win wit yes yet you zap zip zoo
        able acre aunt baby back bake ball band bank barn base bath bead beak beam bear beat bell belt bend
        best bike bird blue boat body bold bone book boot born both bowl brew bulb bulk bush busy cake calm
        camp card care cart case cash cave chef chin chip city clap clay club coal coat code coin cold cook
        cool copy cord corn crab crew crop cube curl dark dawn deck deep deer desk dish door down draw drum
        duck dust duty each earn east easy edge exit face fact farm fast fern fire fish five flag flat foam
        folk food foot fork fort four free frog fuel game gate gift girl glad glow goat gold good gray grow
        hair half hall hand harp head heat herb hero high hill home hood hook hope horn hour huge hunt idea
        iron jazz join joke jump june jury keep kelp kind king kite knee knot lace lake lamb lamp land lane
        lawn leaf lean lens life lime line lion list live loaf lock long look loop love luck lung made mail
        main make many mark mask math maze meal meat melt menu milk mill mind mint mode moon moss much name
        navy near neat neck nest news nine noon nose note oath obey oven over pace pack page paid pair palm
        park part path peak pear pine pink pipe plan play plot plum poem poet pond pony pool port post pull
        pump quit quiz race rain read rent rest rice rich ride ring ripe rise road robe rock roof room root
        rope rose ruby safe sail salt sand save seal seat seed ship shoe shop show side sign silk sing size
        skin slow snow soap sock soft soil song soup spin spot star stay stem step surf swan swim tail tale
        tall tape task team tent test text time tiny toad tone tool town trap tree trip tube tune turn unit
        vase vast verb very view vine vote wage wait walk wall warm wash wave weak wear week well west wide
        wild wind wine wing wire wise wolf wood wool word work yard yarn year yoga zero zone
        about above actor admit adult agent agree alarm album alert angel apple april apron arena arrow
        aunty award bacon badge baker basic beach beard begin bench berry birth black blade blend block
        bloom board boost brain brave bread brick bride brief bring broom brown brush build bunch cabin
        cable camel candy cargo chain chair chalk charm chart cheek chess chest chief child china choir
        civic claim class clean clear clerk climb clock cloth cloud coach coast cocoa color comet coral
        couch count court cover craft crane cream crowd crown curve cycle daily dairy dance diary diver
        dozen draft drama dream dress drink drive eagle early earth eight elbow empty enjoy entry equal
        event extra faith fancy fence ferry fever field fifty fight flame flash fleet float flood floor
        flour fluid focus force forty found frame fresh front frost fruit funny ghost giant glass globe
        glove grade grain grand grape grass great green group guard guest guide happy harsh heart heavy
        hedge hello honey horse hotel house human ideal image index jelly jewel joint judge juice knife
        label large laser laugh layer learn lemon level light limit local lucky lunch magic mango maple
        march match medal melon metal metro minor mixer model money month motor mouse mouth movie music
        night noble noise north novel nurse ocean olive onion opera orbit order organ other outer owner
        paint panel paper party pasta peace peach pearl phone photo piano pilot pizza place plain plane
        plant plate point polar porch pound power press price pride prime print prize proud queen quest
        quick quiet radar radio ranch range rapid ready river robin robot rocky rough round route royal
        ruler salad sauce scale scarf scene scout sense seven shade shark sheep sheet shelf shell shine
        shirt shore short sight skate skill sleep slice small smart smile smoke snack solar solid sound
        south space spark spice spoon sport staff stage stair stamp start steam steel stone store storm
        story sugar sunny super sweet table tiger toast today token tooth torch total touch tower toxic
        track trade trail train treat trend truck trust tulip uncle under union upper urban usual vapor
        video virus visit vital vivid voice wagon waist watch water whale wheat wheel white whole woman
        world wrist write yacht young youth zebra
        active almond anchor animal answer arcade arctic artist autumn bakery ballet banana barber basket
        beauty border bottle branch breeze bridge bright bronze bucket button camera candle canyon carpet
        carrot castle cattle center cereal cheese cherry church circle circus clever closet coffee comedy
        cookie copper corner cotton county course cousin credit custom desert design detail dinner direct
        doctor dollar domain donkey double dragon drawer driver effort eleven energy engine escape expert
        export fabric famous farmer father finger flight flower forest fossil fourth friend frozen future
        galaxy garage garden garlic gentle ginger global golden gospel growth guitar hammer handle harbor
        health heaven helmet hockey honest humble hunter impact income island jacket jungle junior kettle
        ladder lawyer leader legend lesson letter lizard lovely magnet manual marble margin market master
        meadow medium member memory mirror mobile modern moment monkey mother museum native nature needle
        number object office option orange orchid oxygen palace parade parrot pastry pencil people pepper
        person petrol picnic planet pocket poetry police potato powder public puzzle rabbit random recipe
        region remote report rescue ribbon rocket safari salmon sample school screen season secret senior
        shadow shield shower silver simple singer sister smooth soccer spider spirit spring square statue
        street strong studio summer sunset supper switch symbol system target temple tennis theory ticket
        timber tomato tongue travel tunnel turtle valley vanity velvet vendor violet violin vision volume
        walnut weight window winner winter wisdom wonder yellow
        ad am as at be by do go he hi if in is it me my no of ok on or so to tv up us we
        bye cafe demo free hello hotel info new news now off open sale salon shop sold taxi thanks
        airport biscuit blanket brother cabinet captain central chapter chicken chimney classic college compass concert
        costume cottage country cricket crystal curtain deliver diamond dolphin evening express factory feather fiction
        fortune freedom furnace general giraffe hallway harvest helpful herbal history holiday journey justice kitchen
        lantern leather library machine meeting message mineral morning mystery network opening orchard organic outdoor
        package partner pasture patient pattern picture pioneer popular pottery present printer problem program quality
        rainbow reading rooster science shelter special speaker station sunrise theater tourist traffic village vintage
        weather welcome whisper windows
        """.split()
    )
)
"""No word twice. The last ones are those of two letters, of seven, and of shop signs."""


def split_of(text: str) -> str:
    """Assign a text to "train" or "test" by a checksum of its lower-cased form, so alike for all casings."""
    return "test" if zlib.crc32(text.lower().encode()) % TEST_SHARE == 0 else "train"


def kind_of(text: str) -> str:
    """Name the kind of a line of the mock data: "words", "numbers" or "mixed", random letters and digits."""
    return "numbers" if text.isdigit() else "words" if text.lower() in WORDS else "mixed"


WORDS_OF = {split: tuple(word for word in WORDS if split_of(word) == split) for split in ("train", "test")}
"""The words of each split."""
