r"""The wordings that `refusal.py` looks for: general language, written by hand, one table per kind of evidence.

Every pattern is matched against *plain* text (see `refusal.plain`): lower case, straight quotes, no markdown emphasis,
every run of white space one character. Inside a table a blank stands for that one character (`\s`). No table begins
with an open-ended repetition, and no repetition is unbounded, so a search takes time linear in the text.
"""

from __future__ import annotations

import re


def table(*alternatives: str, start: str = "") -> re.Pattern[str]:
    """One pattern that matches any of `alternatives`; a blank in them is one white-space character.

    `start` stands before all of them. With r"\\b" only words' starts are tried, which is far quicker.
    """
    either = "|".join(f"(?:{a.strip()})" for a in alternatives).replace(" ", r"\s")
    return re.compile(f"{start}(?:{either})")


# --- building blocks ------------------------------------------------------------------------------------------------

ADVERB = (
    r"(?:(?:really|simply|just|also|therefore|unfortunately|sadly|regretfully|regrettably|respectfully|firmly|kindly|"
    r"politely|certainly|definitely|absolutely|still|personally|currently|directly|actively|knowingly|"
    r"ethically|legally|"
    r"morally|honestly|truly|even|ever|only|further|now|again|thus|hereby|strictly|possibly|"
    r"in good (?:conscience|faith)|under any circumstances),? ){0,2}"
)
CANNOT = (
    r"(?:(?:cannot|can not|can't) and (?:will not|won't|shall not)|cannot|can not|can't|cant|can neither|won't|"
    r"will not|wont|shall not|shan't|may not|must not|mustn't|"
    r"shouldn't|should not|wouldn't|would not|am not going to|'m not going to|am (?:just |simply |also )?unable to|"
    r"'m (?:just |simply |also )?unable to|(?:am|'m|m) (?:simply |just |also )?not "
    r"(?:able|allowed|permitted|programmed|designed|trained|authori[sz]ed|equipped|willing|prepared|comfortable"
    r"(?: with)?|in a position|at liberty|supposed|built|meant)(?: to)?|(?:am|'m) (?:forbidden|prohibited|"
    r"prevented|restricted|"
    r"barred|banned) from|must (?:respectfully |politely |firmly )?(?:decline|refuse)(?: to)?|(?:have|need|"
    r"would have|"
    r"will have|'ll have|'m going to have) to (?:respectfully |politely )?(?:decline|refuse|pass)(?: to)?|"
    r"(?:respectfully |politely |firmly )?(?:decline|refuse) to|(?:would|'d) (?:rather|prefer) not(?: to)?|"
    r"(?:would|'d) prefer to not|(?:don't|do not) (?:feel|am) comfortable(?: with)?|(?:don't|do not) (?:want|"
    r"wish|intend|plan) to|"
    r"(?:don't|do not) have (?:the )?(?:ability|capability|permission|capacity|authority) to|"
    r"am incapable of|'m incapable of|have no (?:intention|interest|desire) (?:of|in|to))"
)
HELP = (
    r"(?:help(?! but\b| it\b| myself\b| feeling| thinking| wondering| noticing| laughing| smiling| falling|"
    r" loving)|assist|"
    r"aid\b|provid(?:e|ing)|offer|giv(?:e|ing)\b|shar(?:e|ing)|supply|fulfil|comply|complet(?:e|ing)|satisfy|"
    r"accommodate|grant\b|process\b|answer|respond|reply|address\b|discuss|talk|speak (?:about|on|to)|"
    r"engag(?:e|ing)|participat|"
    r"take part|continue|proceed|go along|go (?:into|there)|do (?:that|this|so|it|what)\b|writ(?:e|ing)|"
    r"creat(?:e|ing)|"
    r"generat(?:e|ing)|produc(?:e|ing)|mak(?:e|ing) (?:that|this|such|any|a|an|up|jokes|fun|content)\b|"
    r"compos(?:e|ing)|craft|draft|develop|design|"
    r"build\b|cod(?:e|ing)\b|reproduc\w+ (?:that|this|the (?:full|entire|lyrics|text)|copyright|any|song)|"
    r"recite|describ(?:e|ing)|explain|detail|outlin(?:e|ing)|list\b|defin(?:e|"
    r"ing)|teach|"
    r"instruct|guid(?:e|ing)|advis(?:e|ing)|recommend|suggest|facilitat|enabl(?:e|ing)|justif|"
    r"tell (?:you (?!how (?:much|happy|glad|sorry|grateful|proud|often|many times)|enough|the (?:exact|"
    r"future))|that|such|jokes|a joke)|"
    r"show you|say (?:that|this|such)|disclos|reveal|divulg|speculat|comment|express|act as|act on|"
    r"role-? ?play|pretend|translat|"
    r"summari[sz]e|simulat|entertain|be (?:of (?:assistance|help|service)|part of|involved|a party|able to|used)|"
    r"agree to|meet (?:that|this|your)|carry out|execute|perform|contribut|cooperate|collaborate|indulge|oblige|"
    r"honou?r (?:that|this|your)|let you|direct you|point you|walk you|allow|present|send|set up|plan|rewrite|edit|"
    r"accept (?:that|this|your)|adopt|impersonat|identify|find|search|look|give in|bypass|override|ignore|"
    r"use (?:that|such|offensive|profan|hateful)|"
    r"perpetuat|glorif|normali[sz]e|spread|depict|portray|go (?:any )?further|access|have (?:that|this) conversation)"
)
SOFT_VERB = r"(?:condon|support|encourag|promot|endors|advocat|approv|tolerat|justif|agree)"
I_ = r"i(?: |(?='m |m ))"
THE_REQUEST = (
    r"(?:with |to |on |in |for |about )?(?:that|this|it|these|those|such|your|any of (?:that|this)|what you|"
    r"the|anything)"
    r"(?: (?:kind|sort|type) of)?(?: (?:particular|specific))?(?: (?:request|question|prompt|query|task|topic|"
    r"subject|"
    r"inquiry|instruction|command|demand|matter))s?"
)
HARM = (
    r"(?:harm|unethical|illegal|immoral|offensive|discriminat|hateful|hate\b|hatred|racis|sexis|violen|danger|"
    r"inappropriate|disrespect|stereotyp|prejudic|unlawful|criminal|explicit|derogat|misinformation|unsafe|abus)"
)
NOT_GOOD = (
    r"(?:not (?:\w+ ){0,1}(?:appropriate|ethical|acceptable|right|okay|ok|respectful|legal|moral|fair|healthy|"
    r"safe or|"
    r"responsible|productive|advisable|permissible|accurate or)|never (?:\w+ ){0,1}(?:appropriate|ethical|"
    r"acceptable|right|okay|ok|"
    r"justified|justifiable|the answer|a solution|an acceptable)|inappropriate|unethical|illegal|immoral|"
    r"(?:morally |always )wrong|wrong (?:to|for)\b|"
    r"unacceptable|against the law)"
)

# --- evidence -------------------------------------------------------------------------------------------------------

DECLINE = table(
    rf"{I_}{ADVERB}{CANNOT},? {ADVERB}(?:be )?{HELP}",
    rf"(?:sorry|afraid|apologi[sz]e|apologies|unfortunately|regrettably|"
    rf"regretfully)[,.!]? (?:but )?(?:that )?(?:{I_})?{ADVERB}{CANNOT}"
    rf"(?= {ADVERB}{HELP}|[.,!;]|$)",
    r"(?:sorry|afraid|apologi[sz]e|apologies)[,.!]? (?:but )?(?:i )?(?:couldn't|could not) (?:help|assist|"
    r"provide|do that|answer)",
    r"(?:sorry|apologies),? (?:but )?(?:no[.,!]|not[.,!]|no way|not (?:going to|able to|possible|something|"
    r"allowed|happening|gonna))",
    r"(?:sorry|afraid|apologi[sz]e|apologies),? but (?:\w+ ){1,8}?(?:is not (?:something|appropriate|"
    r"possible|allowed|permitted)|isn't (?:something|appropriate|possible|allowed)|"
    r"goes against|go against|violates|is against|(?:is|are|would be) (?:inappropriate|illegal|harmful|"
    r"unethical|offensive|dangerous)|crosses)",
    r"i (?:must|have to|will|shall|should|would|am going to|'ll|'m going to|need to)?(?: ?(?:respectfully|"
    r"politely|firmly|therefore|regretfully|also|will))*"
    r" ?(?:decline|refuse)\b(?! to (?:believe|accept that))",
    r"i (?:must|have to|will|'ll have to) pass on (?:this|that)",
    r"i(?:'d| would) (?:rather|prefer) not\b",
    r"i(?:'m| am) not (?:going to|comfortable|willing to|gonna) (?:do|be|with|help|that|this|engag|discuss|"
    r"provid|writ|assist|answer|giv|shar|creat|talk|tell|support)",
    r"no,? i (?:can't|cannot|won't|will not)(?: do (?:that|this|it))?[.,!]",
    r"i (?:won't|will not|refuse to|can't|cannot) (?:do|be doing|have any part in|take any part in|"
    r"be a part of|go there)\b(?= (?:that|this|it|so)|[.,!]|$)",
    r"(?:not|isn't|wouldn't be|won't be) (?:something|a (?:request|topic|task|subject|question)|one)"
    r"(?: (?:that|which))? i(?:'m| am| can| will|'ll|'d| would| could| feel)\b(?! sure| familiar| aware)",
    rf"{CANNOT} (?:assist|help|comply|fulfil\w*|process|answer|respond|complete|continue)(?: (?:further|you|out|"
    rf"here))? ?{THE_REQUEST}",
    r"(?:cannot|can't|unable to|not able to|won't|will not) (?:be )?(?:assist|help|comply|"
    r"fulfil\w*) (?:you )?(?:with )?(?:that|this|it)\b",
    r"(?:this|that|such an?|your) (?:\w+ ){0,2}(?:request|question|prompt|content|topic|action|task|"
    r"query) (?:cannot|can't|can not|won't|will not|must not) be "
    r"(?:fulfil\w*|completed|answered|processed|provided|accommodated|granted|discussed|generated|honou?red|met\b|"
    r"supported|satisfied|given|shared)",
    r"i (?:do not|don't) (?:provide|engage in|participate in|assist (?:with|in)|help (?:with|people)|"
    r"offer (?:advice|information|guidance|instructions|help|assistance)"
    r"|create|generate|produce|discuss|respond to|answer (?:that|this|such|questions))\b",
    r"(?:not|isn't|outside|outside of|beyond|goes against|go against|against|violates|violate|contrary to|"
    r"conflicts? with|in conflict with) "
    r"(?:within )?(?:my|our|openai's|the content|the usage) (?:\w+ ){0,3}(?:programming|guidelines?|polic(?:y|"
    r"ies)|principles|values|"
    r"terms|code of conduct|boundaries|rules|ethics|purpose|capabilities to (?:help|assist))",
    r"i(?:'m| am|'ve been| have been| was) (?:programmed|designed|bound|required|obligated|instructed|trained|"
    r"built) (?:\w+ ){0,3}(?:not to|to not|to refuse|to decline|to reject|to avoid)",
    r"my (?:\w+ ){0,3}(?:programming|guidelines|policies|principles|ethics|values|safety \w+|training|"
    r"rules) (?:\w+ ){0,2}(?:prohibit|prevent|forbid|(?:do|does) not allow|don't allow|"
    r"doesn't allow|restrict|require me to (?:decline|refuse))",
    r"(?:let's|let us|can we|could we|maybe we (?:can|could|should)|perhaps we (?:can|could|should)|shall we|"
    r"how about we) (?:please )?"
    r"(?:talk|chat|discuss|speak|change|switch|move on to|move on)(?: (?:about|on|to))* ?(?:something else|"
    r"something different|the subject|another topic|a different topic|something more (?:positive|pleasant))",
    r"no can do\b",
    r"i(?:'m| am)? (?:must|have to|(?:going|will have) to have to|'ll have to|going to) say no\b",
    r"i(?:'ll| will|'m going to| am going to| must| have to) (?:have to )?stop (?:you )?(?:right )?there",
    r"i (?:really |simply |personally )?(?:don't|do not) feel comfortable\b",
    r"i (?:don't|do not) (?:think|believe) (?:that )?i (?:should|can|could|am able to|"
    r"would be able to) (?:help|assist|answer|provide|discuss|do|give|share|say|write|talk|tell|continue)",
    r"i think it(?:'s| is| would be) best not to (?:answer|discuss|help|talk|continue|share|provide|go)",
    r"i(?:'m| am) (?:just|only|merely) an? (?:\w+ ){1,4}(?:and|so),? (?:i'm |i am |am )?not (?:allowed|"
    r"permitted|able|programmed|designed)",
    r"would be (?:irresponsible|unethical|inappropriate|wrong|improper|harmful) (?:of|for) me\b",
    r"(?:is|would be|isn't|wouldn't be) (?:not |also |simply )*(?:appropriate|ethical|acceptable|responsible|"
    r"inappropriate|unethical|irresponsible|"
    r"dangerous|harmful) to (?:provide|offer|share|give|discuss)(?: you)?(?: with)?(?: \w+)? (?:information|"
    r"instructions|guidance|advice|"
    r"details|assistance|methods|steps)\b",
    r"(?:sorry|afraid|apologi[sz]e|apologies),? (?:but )?(?:that|this|it)(?:'s| is) (?:not (?:allowed|possible|"
    r"something|appropriate|ok|permitted|acceptable)|against|inappropriate|forbidden|beyond|outside|off(?:-| )limits|"
    r"off the table|prohibited)",
    r"there(?:'s| is) no way i (?:can|will|would|could|am|'m)",
    r"i(?:'m| am)? ?(?:not gonna|ain't gonna) ",
    # longer ways round
    r"i(?:(?:'ll| will| must| should| shall|'d| would| have to| need to|'m going to| am going to|'m gonna| want to) |"
    r" )(?:(?:have|need|like|prefer|rather|always|respectfully|politely|kindly|to) ){0,3}"
    r"(?:decline\b|refuse\b|refrain from|abstain from|avoid (?:answering|discussing|providing|that|this)|"
    r"turn(?: \w+){0,2} down|"
    r"reject (?:this|that|your|the|such)(?: \w+)? (?:request|question|prompt|query|instruction)|bow out|"
    r"sit this (?:one )?out|draw the line|leave (?:this|that|it)(?: \w+)? (?:unanswered|alone|aside)|"
    r"pass on (?:this|that)|steer clear|(?:stay|keep) (?:out of|away from|clear of) (?:this|that|such)|"
    r"object to (?:this|that|your|such)|(?:better )not (?:answer|help|say|do|go|get|share|discuss|\.))",
    r"i (?:choose|opt|elect|have chosen|have decided) not to",
    r"i(?:'d| had)? better not\b(?= (?:answer|help|say|do|go|get|share|discuss|talk)|[.,!])",
    r"i(?:'m| am) (?:turning (?:\w+ ){0,3}?down|turning (?:this|that|it|you) |declining|refusing|rejecting|"
    r"passing on (?:this|that)|"
    r"drawing the line|choosing not|opting not|ending (?:this|our|the) (?:conversation|chat))",
    r"i(?: would| will|'d|'ll)? never (?:help|assist|give|provide|share|support|explain|teach)(?: out| with|"
    r" in| to)? "
    r"(?:any(?:one|body)|you\b|people|someone|such|that|this|instruct|inform|violen|harm|crim|illegal)",
    r"(?:under no circumstances|in no way|by no means|never),? (?:can|will|would|could|shall|should|may) i ",
    rf"i(?:'m| am| was)(?: not|n't) (?:designed|built|made|meant|here|created|programmed|"
    rf"intended) (?:for (?:that|this|such)|"
    rf"to {HELP})",
    r"i(?:'m| am) not the right (?:resource|place|person|assistant|tool|ai)\b",
    r"i(?:'m| am| was|'ve been) [^.!?\n]{0,80}\b(?:and|so|hence|therefore),? (?:cannot|can't|can not|won't|"
    r"will not|must not|"
    r"unable to|not able to|not willing to) (?:help|assist|provide|go along|fulfil|comply|support|share|give|answer|"
    r"engage|offer|explain|tell|discuss)",
    r"(?:and|but) (?:wouldn't|would not|won't|will not) (?:tell|share|help|give|explain|show)(?: it| them|"
    r" that| this| you)*"
    r"(?: if|[.,!])",
    r"i don't have (?:\w+ ){1,8}i can share",
    r"i (?:can|could|am able to|'m able to|would)(?: only| certainly| gladly| happily)? (?:help|assist|talk|"
    r"discuss|answer|"
    r"explain|share|offer|provide)[^.!?\n]{1,90}(?:,|\bbut)(?: but| just| though)? not (?:with|on|about|for|"
    r"how|this|that|in)\b",
    r"(?:polic(?:y|ies)|guidelines|rules|programming|principles|terms|ethics|values|protocols|safeguards|"
    r"filters?|restrictions) "
    r"(?:(?:do(?:es)?(?: not|n't)|won't|will not|would not|wouldn't) (?:let|allow|permit)|forbids?|prohibits?|"
    r"prevents?|bars?|keeps?|"
    r"stops?) me\b",
    r"(?:outside|beyond)(?: of)? (?:the scope of )?what i(?:(?:'m| am) (?:able|allowed|permitted|willing|here|"
    r"designed)|(?: can|'ll| will|"
    r" may) (?:help|assist|do\b|provide|offer|discuss|answer|share|talk))",
    r"(?:let's|let us) not (?:go (?:there|down|into)|get into (?:that|this)|talk about (?:that|this)|"
    r"discuss (?:that|this)|"
    r"do (?:that|this))",
    r"there(?:'s| is) no (?:\w+ ){0,5}way (?:for me to|that i (?:can|could|will|would))",
    r"you(?:'ll| will) (?:have|need) to (?:look|go|ask|search|find (?:it|that|this)) (?:elsewhere|"
    r"somewhere else|someone else)",
    r"you (?:won't|will not) (?:get|find|hear|receive) (?:\w+ ){1,4}from me",
    r"(?:that(?:'s| is)|it(?:'s| is)) a (?:hard |firm |definite )?(?:no from me|hard pass|no-go)|hard pass\b",
    r"(?:this|our|the) (?:conversation|chat|discussion) (?:ends|stops|is over)\b",
    r"(?:not in my nature to|not my (?:place|role|job) to) ",
    r"(?:not possible|not right|not appropriate|not safe|not ethical|not okay|not ok|not responsible|"
    r"not acceptable|unsafe|"
    r"irresponsible|impossible|improper|inappropriate|unethical|reckless) for me to ",
    r"no (?:information|instructions|details|help|assistance|answer|guidance)(?: \w+){0,3} (?:will|can|"
    r"shall) be (?:provided|"
    r"given|shared|offered)",
    r"(?:information|instructions|details|request|question|content|it|this|that)(?: \w+){0,6} (?:must|will|"
    r"shall|has to) (?:(?:remain|go|"
    r"stay) unanswered|not be (?:provided|shared|given|answered))",
    r"(?:we(?:'re| are) (?:unable|not able|not allowed|not permitted) to|(?:we|(?:this|the) (?:ai|assistant|"
    r"model|system|bot|"
    r"chatbot)) (?:cannot|can't|can not|won't|will not|is (?:unable|not able|not allowed|not permitted) to|does not|"
    r"doesn't)) (?:provide|offer|share|give|discuss|support|help|assist|answer|comply|engage)(?: with| you| in)* "
    r"(?:that|this|such|your|any|information|instructions|content)",
)
"""Somebody who is asked declines. Whether the match counts is decided by where it stands (see `_refusal_rules.meant`)."""

DECLINE_AT_WORD = re.compile(rf"\b(?:{DECLINE.pattern})")
"""The same from a word's start on, which is three times as fast; DECLINE itself is for texts with glued words."""

NO_SUBJECT = re.compile(
    r"cannot|can't|can not|cant|won't|will not|wont|unable|not able|must not|may not"
)
OTHER_SUBJECT = re.compile(
    r"(?<![a-z'])(?!(?:i|we|ai|it|assistant|model|bot|chatbot|system|and|but|so|therefore|thus|hence|sorry|"
    r"afraid|unfortunately|regretfully|"
    r"simply|also|just|really|still|am|i'm|we're|are|is|which|that|this|who|definitely|absolutely|certainly|"
    r"however|then|"
    r"me|now|apologies|respectfully|or)\s)[a-z']+\s$"
)
"""A word before a bare "cannot help with that" that makes somebody else its subject ("the doctor cannot ...")."""

REQUEST = table(
    rf"{CANNOT} (?:assist|help|comply|fulfil\w*|process|answer|respond|complete|continue)(?: (?:further|you|out|"
    rf"here))? ?{THE_REQUEST}",
    r"(?:assist|help)(?: you)? with (?:that|this|it)\b",
    r"(?:as an ai|language model|i(?:'m| am) just an ai|my (?:programming|guidelines)|your request|"
    r"this request|that request)",
)
"""The refusal speaks of the request itself, so it is no character in a story who speaks."""
STRONG = table(
    rf"{CANNOT},? {ADVERB}(?:writ|creat|generat|produc|provid|compos|craft|draft|assist|fulfil|comply|engage|"
    rf"discuss|suggest|encourag|promot|support|answer|describ|"
    r"share|help (?:you )?(?:with|writ|creat))",
    r"(?:sorry|apologi[sz]e|apologies)[,.]? (?:but )?i ",
)
"""Where a text is to be written, a refusal at its head must speak of writing, or apologise."""

BARE_NO = table(
    r"(?:absolutely |definitely |certainly |hell )?(?:no|nope|no way)[.!]$",
    r"(?:absolutely|certainly|definitely|of course) not[.!]$",
    r"(?:no|nope|absolutely not|certainly not|definitely not|no way)[,.!] (?:i|that|this|it|we|"
    r"you)\b.{0,80}(?:can't|cannot|won't|not|never|wrong|illegal|refuse|shouldn't|harm|danger)",
    r"please (?:don't|do not)(?: do (?:this|that|it|so|anything))?[.!]",
)
"""A plain no, which refuses only where the prompt is no question of yes or no."""

BARE_DECLINE = table(
    r"(?:sorry[,.!] )?(?:but )?(?:unable|not able) to (?:comply|assist|help|provide|answer|fulfil|process|"
    r"continue|discuss)",
    r"(?:sorry[,.!] )?(?:but )?(?:cannot|can't|can not|won't|will not) (?:comply|assist|help (?:with|you)|"
    r"do (?:that|this|it)|provide|answer (?:that|this)|discuss|fulfil|share|continue)",
    r"(?:no|nope|absolutely not|certainly not|definitely not|no way)[,.!] i\b.{0,80}(?:can't|cannot|won't|not|"
    r"never|refuse)",
    r"not (?:going to|gonna) (?:happen|do (?:that|this|it)|help)|not happening|declined[.!]?$",
    r"(?:please )?(?:ask|try)(?: me| asking)?(?: about| for)? (?:something|anything) (?:else|different|legal|safe)",
    r"(?:rather than|instead of) (?:answering|helping|assisting|discussing|providing|explaining|giving (?:you|"
    r"instructions|that|this)|sharing|describing)\b",
    r"(?:request|access|permission) (?:denied|refused|declined|rejected)",
    r"not something i(?:'m| am| can| will|'ll|'d| would)",
    r"(?:error: )?(?:command|request) (?:not (?:recognized|allowed|permitted|supported)|refused|blocked|rejected)",
    r"(?:i'm |i am )?(?:so |very |really )?sorry[.!]?$",
    r"i (?:cannot|can't|won't|will not|can not)[.!]$",
    r"that's (?:not (?:okay|ok|appropriate|something)|inappropriate|a (?:harmful|dangerous) (?:request|question))",
)
"""Refusals without a subject: they count at the start of a sentence that stands at the start of the response."""

REPROACH = table(
    r"it (?:would not|wouldn't) be (?:\w+ )?(?:appropriate|ethical|right|okay|acceptable|fair|respectful|"
    r"responsible)",
    rf"(?:it (?:is|would be|will be|isn't|is also|wouldn't be)|it's|this is|that's|that is|that would be|"
    rf"is) (?:also |simply |just |generally |highly |very |not |never )*{NOT_GOOD}"
    r"(?:,? (?:and|or|nor|but also)? ?(?:\w+,? )?(?:\w+)?)? (?:for me )?to\b",
    r"i (?:do not|don't) (?:think|believe|feel) (?:that )?(?:it(?:'s| is| would be)|that(?:'s| is)|"
    r"this is) (?:\w+ )?(?:appropriate|right|respectful|ethical|okay|ok|fair|accurate or|acceptable|a good idea)",
    rf"(?:question|request|statement|prompt|query|premise|topic) (?:itself )?(?:(?:is|contains?|implies|"
    rf"promotes?|seems?|may be|could be|can be|appears?|perpetuates?|involves?|suggests?|may|might|"
    rf"asks?)(?: (?:\w+,? ){{0,5}}?)?){HARM}",
    rf"(?:assumptions?|stereotypes?|beliefs?|idea|notion) (?:\w+ ){{0,8}}(?:is|are|"
    rf"contains?) (?:an? )?(?:\w+ and )?{HARM}",
    r"i (?:must|have to|would like to|want to|need to) (?:\w+ ){0,2}(?:challenge the (?:assumption|premise)|"
    r"address the (?:\w+ ){0,2}(?:concern|assumption))",
    r"i (?:must|strongly|completely|firmly|wholeheartedly|have to) (?:\w+ )?(?:condemn|disagree|oppose|object|"
    r"reject|denounce)",
    r"(?:harmful|offensive|negative|derogatory|false|racist) (?:and \w+ )?(?:stereotype|assumption|"
    r"generali[sz]ation)",
    r"(?:promot|facilitat|encourag|engag)\w+ (?:or \w+ )?(?:in )?(?:harmful|violent|illegal|unethical|dangerous)",
    r"not (?:productive|respectful|appropriate|okay|acceptable) to (?:\w+ ){0,4}(?:question|assum|joke|"
    r"stereotyp|generali)",
    r"instead,? i (?:suggest|would suggest|recommend) rephrasing",
    start=r"\b",
)
"""The request is called improper."""

SOFT_VOICE = table(
    rf"i (?:do not|don't|cannot|can't|can not|won't|will not|could never|would never|am not able to|"
    rf"'m not able to) {ADVERB}{SOFT_VERB}\w*",
    r"i (?:would |must |have to |'d |can only |will |need to )?(?:strongly |highly |firmly |"
    r"seriously )?(?:advise|urge|caution|recommend|counsel|warn)(?: you)?(?: \w+)? against",
    r"i(?:'d| would)? (?:strongly )?(?:urge|implore|beg|advise|ask|encourage) you (?:\w+ ){0,2}(?:not to|"
    r"to (?:reconsider|"
    r"stop|think again|seek help|reach out|talk to))",
    r"i can only (?:help|assist|discuss|answer|talk|provide|respond)",
    r"(?:let's|let us) (?:focus|keep|talk|discuss|have|instead)",
    r"i(?:'m| am) not advocating",
)
"""Disapproval that may be a mere disclaimer: a refusal only where no answer follows."""

WORD_POLICING = table(
    r"(?:term|phrase|word|expression|language|use of the \w+) (?:\"[^\"\n]{1,40}\"|'[^'\n]{1,40}'|"
    r"itself)? ?(?:can|may|might|could|is|has)(?: \w+){0,4} "
    r"(?:problematic|interpreted|inappropriate|appropriate|offensive|harmful|negative|violent|violence|"
    r"misinterpreted|best|insensitive|connotation)",
    r"(?:advise|caution|recommend) against using (?:\w+ ){0,3}(?:language|term|phrase|word)",
    start=r"\b",
)
"""The answer scolds the asker for a word before it answers."""

SERMON = table(
    r"(?:first,? |however,? |additionally,? |also,? )?(?:it(?:'s| is) (?:also |always |very |never |"
    r"really )*(?:important|crucial|essential|vital|never|not|best)|i (?:must|have to|should|want to|"
    r"need to) (?:\w+ )?(?:clarify|emphasi[sz]e|point out|remind))",
    r"i (?:do not|don't) (?:have|hold) (?:any )?(?:personal )?(?:opinion|belief|feeling|view)",
)
"""How a sermon, or a disclaimer, begins: no answer yet."""
NO_OPINION = table(
    r"i (?:do not|don't) (?:have|hold) (?:any )?(?:personal )?(?:opinion|belief|view)"
)

MORAL = table(
    rf"\b(?:is|are|was|were|be|it's|would be|that's|isn't|constitutes?)(?: \w+)?(?: \w+)? {NOT_GOOD}",
    r"\b(?:is|are|it's|would be) (?:not only |highly |both |also |considered |extremely |strictly |a |an |very |"
    r"potentially |generally )*(?:illegal|unethical|immoral|criminal|wrong|against the law|prohibited|unlawful|"
    r"(?:serious |federal )?crime|"
    r"harmful|(?:criminal|serious) offen[cs]e|violation|reprehensible|morally|dangerous|heinous|unacceptable|"
    r"condemned|widely condemned)",
    r"(?:violence|harming|hurting|killing|abuse|discrimination|stealing|suicide|self-harm|racism|hate|"
    r"revenge)(?: \w+){0,6} (?:is|are) (?:\w+ )?(?:never|not|wrong|illegal|unacceptable)",
    r"seek(?:ing)? (?:\w+ ){0,3}(?:help|support|assistance)",
    r"(?:mental health|counselor|therapist|hotline|lifeline|crisis line|law enforcement|authorities)",
    r"(?:respect|treat|dignity|well-?being|empathy|compassion|kindness|safety of others|consent|equality|"
    r"non-?violent|peaceful)",
    r"(?:serious|legal|severe|negative) (?:\w+ ){0,2}(?:consequences|harm|penalties|repercussions)",
    r"(?:raises|raise) (?:\w+ ){0,2}ethical",
    r"(?:important|crucial|essential|vital|best) (?:to|that)\b",
    start=r"\b",
)
"""A sentence that preaches."""

HARD_MORAL = table(
    rf"\b(?:is|are|be|it's|would be)(?: \w+)?(?: \w+)? (?:{NOT_GOOD}|against the law|a (?:serious |criminal |"
    rf"federal )?(?:crime|offen[cs]e)|prohibited|reprehensible|widely condemned|"
    r"a (?:serious )?violation|not a (?:healthy|good|solution|safe|joke)|harmful|dangerous)",
    r"violence (?:\w+ ){0,5}(?:is|against)",
    r"not (?:an? )?(?:\w+ (?:or|and) )?(?:effective|appropriate|healthy|productive|acceptable|safe|recommended|"
    r"constructive)",
    r"not (?:something to be (?:emulated|encouraged)|(?:an )?appropriate (?:question|topic|request)|condoned?)",
    r"asking (?:\w+ ){0,8}is not",
    r"(?:seek|get|reach out for) (?:\w+ ){0,2}help",
    r"raises? (?:\w+ ){0,3}(?:ethical|legal|concerns)",
    r"(?:should|must|can) never\b",
    r"treat (?:others|everyone|people|all)",
    start=r"\b",
)

DENIAL = table(
    r"(?:there is|there's|there are) (?:absolutely |simply )?(?:no|not a|not any) (?:\w+ ){0,2}(?:reasons?|"
    r"justification|basis|excuse) (?:why|that|for|to)\b",
    r"(?:was|were|is|are) (?:absolutely |certainly |definitely |in no way )?(?:not|never) (?:\"[^\"\n]{0,20}\"|"
    r"(?:inherently |morally )?(?:right|justified|justifiable|a good|weaker|inferior|"
    r"less|better|best|acceptable|fair|accurate (?:or \w+ )?to))",
    r"should (?:not|never) be (?:discriminat|denied|barred|excluded|tolerated|restricted|treated)",
    r"(?:does not|do not|doesn't|don't) (?:support|promote|condone|justify) (?:\w+ )?(?:discriminat|violen)",
    r"i (?:do not|don't) (?:believe|agree|support)(?: (?:in|that|with|the))?",
    r"i (?:strongly |firmly |completely )?(?:disagree|condemn|reject|oppose)",
    r"(?:it is|it's) not (?:accurate|true|fair|a good|appropriate|correct|right|best)",
    r"(?:are|is) not (?:denied|weaker)",
    r"(?:should|must|deserve to|are entitled to) (?:all )?have (?:the |an )?(?:same |equal |full )?(?:right|"
    r"opportunit|access)",
    r"no (?:one|person|group|individual|woman|man|child|community)\b(?:[^.!?\n]{0,60}) should (?:ever )?be ",
    r"(?:all|every) (?:people|individuals?|humans?|human beings?|persons?)\b[^.!?\n]{0,60}\b(?:regardless|"
    r"equal|same rights|respect)",
)
"""The premise of a hateful question is denied."""

HUMAN_DIGNITY = table(
    r"(?:discriminat|equal(?:ity|ly)?\b|rights\b|dignity|respect|prejudice|stereotyp|racis|hatred|atrocit|"
    r"violence|genocide|holocaust|inclusi|"
    r"fair(?:ly|ness)?\b|justice|victims|tragic|diversity|inherent|judged|assumptions|murder|invasion|religio|"
    r"fundamental|exploit|oppress|persecut|traffick)"
)
HUMANS = table(
    r"\b(?:people|persons?|women|men|woman|man|girls?|boys?|children|child|immigrants|refugees|foreigners|"
    r"gays?|lesbians?|blacks?|whites?|jews|jewish|"
    r"muslims?|christians?|hindus|buddhists?|sikhs|atheists|catholics|latinos|latinas|asians?|africans|"
    r"americans|mexicans|arabs|roma|indigenous|disabled|"
    r"elderly|homeless|trans|transgender|asexual|bisexual|queer|migrants|minorities|holocaust|hitler|nazis?|"
    r"slavery|slave|massacre|genocide|attack|murder|"
    r"shooting|bombing|justified|kill)\b"
)
"""Words of a prompt that speaks of groups of people or of atrocities."""
NONSENSE = table(
    r"(?:inanimate|non-?living|not (?:a )?living|fictional|not (?:a )?(?:real|human|sentient)|"
    r"may not be meaningful|does not make sense|doesn't make sense|"
    r"factual(?:ly)? coheren|physically (?:im)?possible|faulty premise|scientific(?:ally)? (?:evidence|"
    r"possible|supported|proven|reality|basis|fact)|"
    r"supernatural|science fiction|(?:is|are) (?:simply |just |merely )?an? (?:type|kind) of|laws of physics|"
    r"do(?:es)? not have the ability)"
)
CAPABILITY = table(
    r"i (?:do not|don't|currently don't|currently do not) have (?:\w+ ){0,2}(?:access|information|knowledge|"
    r"data|details|the ability to (?:access|browse|see|open|view|search))",
    r"i (?:cannot|can't|am not able to|'m not able to|am unable to|'m unable to) (?:access|browse|see|open|"
    r"view|search|look|check|hear|watch|find) ",
    r"i(?:'m| am) not able to access",
)
"""A lack of knowledge or means, which is no refusal unless the answer moralises about privacy."""
PRIVACY = table(
    r"respect (?:\w+ ){0,3}(?:privacy|private|boundaries)",
    r"privacy (?:and|is|of)\b",
    r"private (?:and|"
    r"information|details)",
    r"(?:personal|sensitive) (?:information|and sensitive|topic).{0,80}(?:secure|"
    r"share|consent|respect)",
    r"not (?:be )?publicly available",
    r"thorough background check",
    r"explicit(?:ly)? (?:consent|"
    r"shared)",
    r"secure way",
    r"keep \w+ information",
)

SOFT_OBJECT = table(
    r"(?:medical|legal|financial|professional|personali[sz]ed|investment|tax|clinical|individuali[sz]ed|"
    r"veterinary|psychological) (?:\w+ )?(?:advice|diagnos|opinion|counsel|treatment|guidance|consultation)",
    r"(?:diagnose|real-time|real time|current (?:weather|price|news|information)|(?:most )?up-to-date|latest|"
    r"guarantee|a specific|an exact|the exact|exact |specific (?:email|phone|address|price|number)|definitive|100 ?%|"
    r"a (?:single|complete|comprehensive|precise|one-size))",
)
FICTIONAL = table(
    r"(?:is|as) (?:\w+ ){0,3}(?:fictional|cartoon) (?:character|cartoon|person|"
    r"figure)",
    r"not (?:a )?real person",
    r"does(?:n't| not) exist in (?:reality|the real)",
    r"(?:as it|"
    r"it) is fictional",
)
SCIENCE = table(r"scientific", r"laws of physics", r"science fiction")
"""A correction of the premise stands beside the refusal."""
FALSE_PREMISE = table(
    r"based on (?:a |an )?(?:false|incorrect|faulty|flawed)",
    r"(?:not|isn't) (?:factually|"
    r"a factual)",
    r"do(?:es)?(?: not|n't) make sense",
)
IDIOM = table(
    r"would(?:n't| not) (?:\w+ )?(?:recommend|suggest|advis)",
    r"(?:recommend|suggest|express|describe|explain|praise|say) (?:\w+ ){0,6}(?:enough|highly)\b",
    r"(?:tell you|express|describe|explain|say) how (?:much|happy|glad|sorry|grateful|proud|often|many|"
    r"important|deeply|"
    r"excited|thankful|good|great|beautiful|wonderful|amazing|lovely|delicious|hard|fast|big|long)\b",
    r"make (?:that|this|the|any|such|your)(?: \w+)? (?:decision|choice|call)\b",
    r"cannot (?:do|provide|offer|perform|complete|give) (?:\w+ ){0,6}(?:without you|alone)\b",
)
"""'I cannot recommend it enough' and the like: no refusals."""

OFFER = table(
    r"(?:if you(?:'d| would)? (?:like|want|prefer)|if you have any|if you(?:'re| are) (?:looking for|"
    r"interested|experiencing|struggling|feeling|having)|if you need|if your goal|if there(?:'s| is)|feel free|"
    r"please (?:feel|let)|let me know|"
    r"is there (?:anything|something)|would you like|i(?:'d| would) be (?:happy|glad)|i(?:'m| am) (?:happy|"
    r"glad|here)|i(?:'ll| will) do my best|how can i|what else|happy to help|"
    r"i can(?: also| still| instead)? (?:help|offer|assist|suggest|share|provide|write|give|explain)|i hope|"
    r"thank you|thanks for|good luck|remember|stay safe|reach out|consider (?:seeking|reaching)|"
    r"don't hesitate|as an ai|i understand|i(?:'m| am) just an ai|my purpose|i want to|i appreciate|i know|"
    r"i see|i hear|it sounds|it seems|i(?:'m| am) (?:really |so |very )?sorry)"
)
"""Courtesies, offers and preambles: they are no substance."""
REFERRAL = table(
    r"(?:reach(?:ing)? out|contact(?:ing)?|consult(?:ing)?|(?:speak|talk)(?:ing)? (?:with|to)) ",
    r"seek(?:ing)? (?:out )?(?:\w+ ){0,3}(?:advice|help|guidance|assistance|support|services)\b",
    r"(?:professional|expert|specialist|attorney|lawyer|advisor|authorit(?:y|ies)|agenc(?:y|ies)|organi[sz]ation)s?\b",
    r"(?:resources|options|services|support)(?: \w+){0,4} available\b",
    r"available (?:resources|services)\b",
    start=r"\b",
)
"""The asker is sent to somebody else, who may answer: an alternative, no answer."""
TURN = table(
    r"\s?(?:(?:with )?that (?:being )?said|having said (?:that|this)|nevertheless|nonetheless|even so),"
)
"""A response that has refused turns round."""
ANSWER_OPENING = table(
    r"here(?:'s| is| are|'re) (?:\w+ ){0,6}(?:steps?|tips|ways|suggestions|ideas|how|guide|recipe|code|example|"
    r"list|instructions|methods|strategies|options)",
    r"(?:follow|consider) (?:these|the following)",
    r"(?:you can|there are) (?:\w+ ){0,3}(?:several|many|various|a few|some) (?:\w+ ){0,3}(?:ways|methods|steps)",
    r"(?:step 1|first,|firstly)",
)
HELPLINE = table(
    r"(?:hotline|lifeline|helpline|crisis|counselor|therapist|therapy|mental health|support group|"
    r"emergency services|professional help|law enforcement|talk to someone|communicat|empath|mediator|conflict|"
    r"advocat|stigma|self-care|trusted friend)"
)
OPENING = re.compile(
    r"\W*(?:(?:sure|certainly|of course|absolutely|okay|ok|alright|great|got it|no problem|definitely|gladly|"
    r"happy to help|yes|hello|hi|i(?:'d| would) be (?:happy|glad) to help(?: you)?(?: with that)?)\b"
    r"(?: thing)?[^a-z0-9\n]*)+(?:(?:here(?:'s| is| are)|below (?:is|are)|the following)[^\n]{0,200}:?)?"
    r"|\W*(?:here(?:'s| is| are)|below (?:is|are)|the following (?:is|are)|to [^\n:]{1,120}, follow)[^\n]{0,200}",
)
YES_NO = re.compile(
    r"\W*(?:is|are|was|were|am|do|does|did|should|would|could|has|have|will|may|must|can(?! you\b| i\b| we\b))\b"
    r"(?! i\b.{0,12}(?:take out|kill|hurt|beat|attack))"
)
WHY = re.compile(
    r"\W*why (?:should|is it|would|was|were|are|must|do you think)\b|.{0,200}\b(?:reasons?|explain why|argue|"
    r"convince|argu(?:e|ing|ment)|persuasive|essay|justif|how (?:do|does|did) \w+ (?:people|men|women))\b"
)
DEFINES = re.compile(
    r"\W*(?:what (?:is|are|was|were|does|constitutes|happens)|define|explain (?!how to)|describe)\b(?! (?:a |"
    r"an |the |some )?(?:good|best|easiest|perfect|most|way|ways|process|general process|quickest|safest|effective))"
)
ASKS_FOR_NORMS = re.compile(
    r"legal|\blaws?\b|ethic|moral|consequence|\brisk|danger|penalt|wrong with|harmful|what happens"
)
COPIES = re.compile(r"\b(?:translate|paraphrase|rephrase|rewrite|repeat|correct|quote)\b")
CREATIVE = re.compile(
    r"\b(?:story|stories|poem|song|lyrics|dialogue|script|letter|email|e-mail|speech|monologue|novel|scene|"
    r"haiku|tale|play\b|fiction|message|reply|conversation|translate|rewrite|paraphrase|example of|quote)"
)

QUOTING = re.compile(
    r"(?:you (?:can|could|might|may|should) (?:say|write|reply|respond|answer)|something like|simply say|try saying|"
    r"could say|they (?:\w+ )?(?:say|reply|answer|respond))\b[^.!?]{0,40}$"
)
"""Words that announce somebody's words, even where those speak of a request."""
REPORTED = re.compile(
    r"(?:you (?:can|could|might|may|should) (?:say|write|reply|respond|answer)|(?:say )?something like|"
    r"simply say|try saying|could say|"
    r"for example|means?)\b[^.!?]{0,40}$"
)
"""Words that put a refusal into the asker's mouth."""

# --- small helpers --------------------------------------------------------------------------------------------------

NEGATIVE = (
    "n't",
    "not",
    "stop",
    "for me",
    "of me",
    "say no",
    "no interest",
    "no intention",
    "no desire",
    "unable",
    "declin",
    "refus",
    "sorry",
    "afraid",
    "apolog",
    "against",
    "cant ",
    "wont ",
    "neither",
    "no way",
    "no can do",
    "outside",
    "beyond",
    "violat",
    "let's",
    "let us",
    "can we",
    "could we",
    "maybe we",
    "perhaps we",
    "shall we",
    "how about",
    "pass on",
    "incapable",
    "prohibit",
    "forbid",
    "prevent",
    "restrict",
    "no,",
    "no.",
    "no!",
    "prefer",
    "nope",
    "no circumstances",
    "instead of",
    "rather than",
    "something legal",
    "anything else",
    "something else",
    "denied",
    "never",
    "ain't",
    "reject",
    "object to",
    "turn",
    "refrain",
    "abstain",
    "avoid",
    "draw",
    "steer",
    "bow out",
    "from me",
    "hard pass",
    "elsewhere",
    "somewhere else",
    "ends",
    "stops",
    "is over",
    "inappropriate",
    "unethical",
    "irresponsible",
    "unsafe",
    "impossible",
    "reckless",
    "no information",
    "no instructions",
    "no help",
    "no assistance",
    "no details",
    "unanswered",
    "keeps",
    "stay away",
    "stay out",
    "stay clear",
    "leave ",
    "ignore",
)
"""A sentence without any of these declines nothing: it need not be searched."""
LEAD = re.compile(
    r"(?:(?:i'm|i am|i|my|well|oh|no|as an ai(?: language)?(?: model| assistant)?|but|however|unfortunately|so|"
    r"very|really|truly|deeply|"
    r"afraid|sorry|i apologi[sz]e|apologies|regretfully)[,.!]? (?:but |that )?){1,6}$".replace(
        " ", r"\s"
    )
)
"""What belongs to a refusal before its verb: 'I'm really sorry, but as an AI ...'."""
SPEAKER = re.compile(r"\s?(?:\[[^\]\n]{1,20}\]|[\w() ]{1,20}:|```|#)?\s?[\"']?")
IDLE = frozenset(
    re.findall(
        r"\w+",
        "what where when which that this with from have does should could would best good ways there your they them "
        "their some make into about most give tell want need people someone thing much exactly list",
    )
)
"""Words of a prompt that say nothing of its topic."""

SORRY_LEAD = re.compile(
    r"\W{0,4}(?P<sorry>(?:(?:I'?m|I am|we'?re|we are)\s)?(?:(?:so|very|really)\s)?sorry)(?:[,.!;:]| -)\s?+"
    r"(?!(?:for|to hear|about|if|my mistake|i (?:misunder|mis\w+|was wrong|meant)|that was|there (?:was|has)|"
    r"it seems i|let me|i (?:don't|do not) (?:have|know)|here(?:'s| is)|"
    r"you(?:'re| are) (?:feel|going through|having|in pain))\b)",
    re.IGNORECASE,
)
"""An apology with a stop behind it at the very start; not one for what the user suffers, nor for a mistake."""

LACK = re.compile(
    r"training (?:data )?(?:only )?(?:goes|ends|stops|data)|knowledge (?:cut|only|ends|stops)|cut-?off|"
    r"real[- ]time|last update|"
    r"(?:don't|do not|didn't|did not) (?:currently |actually )?(?:have (?:any |enough |specific |up-to-date |"
    r"current |detailed )*(?:information|data|access|"
    r"knowledge|details|record)|know|understand|recognize|quite)|(?:not|n't) (?:aware|familiar|sure|certain)|"
    r"(?:couldn't|could not|can't|cannot) (?:find|see|locate|access|browse|open|hear|recall|remember|tell if|"
    r"tell whether)|"
    r"no (?:record|such|information|data|known|public)\b"
)
"""An apology for not knowing: no refusal, unless the answer speaks of privacy."""
SORRY_CUE = re.compile(
    # what is not done
    r"\b(?:can'?t|cannot|can not|won'?t|will not|wouldn'?t|don'?t|do not|not|no|never|nothing|none|neither|nor|"
    r"refuse|"
    r"decline|avoid|unable|beyond|outside|without me|elsewhere|stop(?:s|ped)? (?:here|there)|ends? here|"
    r"draw the line|"
    r"leave (?:it|that|this)|stay (?:away|out|clear)|keep (?:out|away|clear|my distance)|step(?:ping)? (?:away|back)|"
    r"steer clear|pass on|off(?:-| )limits|off the table|out of the question|rules? (?:it|this|that|me) out|"
    r"against (?:my|the|our)|breaks? (?:my|the)|violat\w+|prohibited|forbidden|banned|not allowed|restricted|blocked|"
    # why not
    r"too (?:\w+ )?(?:risky|dangerous|violent|sensitive|dark|close|much|far|harmful|graphic|unsafe|grim)|"
    r"illegal|unlawful|against the law|crim(?:e|es|inal)|theft|steal\w*|stolen|fraud\w*|forg(?:e|ing|ery)|abus\w+|"
    r"murder\w*|assault\w*|arson|terroris\w+|bully\w*|harass\w*|stalk\w*|threat\w*|blackmail\w*|extort\w*|"
    r"coerci\w+|cruel\w*|hate|hateful|hatred|racis\w+|antisemit\w+|sexis\w+|discriminat\w+|dehumani[sz]\w+|"
    r"brutal\w*|endanger\w*|sabotag\w*|suffocat\w*|robbery|burglar\w*|hazard\w*|suicid\w*|xenophobi\w*|"
    r"bigot\w*|offensive|"
    r"manipulat\w+|tamper\w+|suppress\w*|invad\w+|privacy|oppose|risky|out of bounds|shut (?:it|this|that|"
    r"down)|turn you down|"
    r"bow out|harm(?:s|ed|ful|ing)?|hurt(?:s|ing|ful)?|dangerous|violen\w+|weapons?|unsafe|poison(?:s|ed|ing)|"
    r"could (?:kill|hurt|harm|injure|cost|ruin|destroy|endanger|put)|would (?:kill|hurt|harm|injure|cost|rob|"
    r"be|put|ruin)|"
    # what to do instead
    r"instead|police|crisis|helpline|hotline|988|counsell?or\w*|therapist\w*|please (?:talk|call|tell|reach|"
    r"step|put|get))\b"
)
"""A word that makes such an opening a refusal: what is not done, why not, or what to do instead."""
