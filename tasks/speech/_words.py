"""Common English words, of which sentences are made that are no wake word."""

WORDS = tuple(
    """
    able about above across act actor add afraid after again age ago agree air all allow almost
    alone along already also always among amount and anger animal answer any appear apple area arm
    army around arrive art article ask autumn away baby back bad bag ball bank base basket bath
    battery beach bear beautiful because become bed before began begin behind believe bell below
    beside best better between big bird birthday bit black block blood blow blue board boat body
    bone book border born both bottle bottom bought box boy branch bread break breakfast bridge
    bright bring broke brother brought brown build burn business busy but buy call came camera camp
    can capital captain car card care carrot carry case cat catch cause center century chair chance
    change chapter charge check cheese chicken chief child choose church circle city claim class
    clean clear climb clock close clothes cloud coast coat coffee cold collect color come common
    company compare complete concert condition consider contain continue control cook cool copper
    copy corn corner correct cost cotton could count country course cousin cover cow create crop
    cross crowd cry current curtain cut dance danger dark daughter day dead deal dear death decide
    deep degree depend desert design desk develop dictionary die different difficult dinner direct
    discuss distant divide doctor does dog dollar door double doubt down draw dream dress drink
    drive drop dry duck during dust each ear early earth ease east easy eat edge effect egg eight
    either electric element else empty end enemy energy engine english enjoy enough enter equal
    even evening event ever every exact example except excite exercise expect experience eye face
    fact fair fall family famous far farm fast father favor fear feed feel feet fell few field
    fight figure fill final find fine finger finish fire first fish fit five flat floor flow flower
    fly follow food foot for force forest forget form forward found four free fresh friday friend
    from front fruit full fun future game garden gas gather gave general gentle get giant girl give
    glad glass goes gold gone good got govern grand grandmother grass gray great green grew ground
    group grow guess guide gun hair half hand happen happy hard harvest hat have head hear heart
    heat heavy held help here high hill history hit hold hole holiday home honey hope horse
    hospital hot hotel hour house how huge human hundred hunt hurry husband ice idea imagine inch
    include indicate industry insect instant interest invent iron island jacket january job join
    journey joy jump june just keep kept key kill kind king kitchen knee knew knife know lady lake
    language large last late laugh law lay lead learn least leather leave led left leg lemon length
    less lesson let letter level library lie life lift light like line list listen little live
    locate log lone long look lost lot loud love low lunch machine magnet main major make man many
    map march mark market master match material matter may mean measure meat medicine meet melody
    member memory men metal method middle might mile milk million mind mine minute miss mix modern
    molecule moment monday money monkey month moon more morning most mother motion mountain mouth
    move much multiply museum music must name nation natural nature near necessary neck need
    neighbor never new next night nine noise noon nor north nose note nothing notice noun now
    number object observe ocean october off offer office often oil old once one only open operate
    opposite orange orchestra order organ original other our out over own oxygen page paint pair
    paper paragraph parent part party pass past path pattern pay people pepper perhaps period
    person phrase piano pick picture piece pilot place plain plan plane planet plant play please
    plenty plural pocket poem point poor populate port pose position possible post potato pound
    power practice prepare present press pretty print probable problem process produce product
    promise proper protect prove provide public pull push put quart question quick quiet quite race
    radio rail rain raise ran range rather reach read ready real reason receive record red region
    remember repeat reply report represent require rest result rice rich ride right ring rise river
    road rock roll roof room root rope rose round row rub rule run sad safe said sail salt same
    sand saturday save say scale school science score sea search season seat second secret section
    see seed seem segment select sell send sense sentence separate serve set settle seven several
    shade shadow shall shape share sharp she sheet shell shine ship shirt shoe shop short should
    shoulder shout show side sight sign silent silver similar simple since sing single sister sit
    six size skill skin sky sleep slip slow small smell smile snow soap soft soil soldier solution
    solve some son song soon sound south space speak special speech speed spell spend spoke spot
    spread spring square stand star start state station stay steam steel step stick still stone
    stood stop store story straight strange stream street stretch string strong student study
    subject substance subtract success such sudden suffix sugar suggest suit summer sun sunday
    supply support sure surface surprise swim syllable symbol system table tail take talk tall
    teach team telephone tell temperature ten term test than thank that the their them then there
    these they thick thin thing think third this those though thought thousand three through throw
    thursday ticket tie time tiny tire together told tomato tomorrow tone tool top total touch
    toward towel town track trade train travel tree triangle trip trouble truck true try tube
    tuesday turn twenty two type uncle under unit until up upon usual valley value vary vegetable
    very view village violin visit voice vowel wait walk wall want war warm was wash watch water
    wave way we wear weather wednesday week weight well went were west what wheel when where
    whether which while white who whole whose why wide wife wild will win wind window wing winter
    wire wish with woman wonder wood word work world would write wrong yard year yellow yesterday
    yet you young your zero
    """.split()
)
