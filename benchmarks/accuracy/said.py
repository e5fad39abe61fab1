"""What the numbers of each sweep say, in a sentence; to be written anew when they change."""

SAID = {
    "objective": "Two losses, one for each reward, rank as well as one for their sum; its weight "
    "alpha matters little.",
    "rate of the reward head": "A slower reward head loses two points; a faster one gains none.",
    "rate of LoRA": "In so few steps a faster LoRA does not help the sum.",
    "rate of the head": "The private LLM head's rate makes no difference.",
    "rate of the adapter": "A faster adapter loses six points of the sum: its implicit reward "
    "grows and drowns the explicit one, which ranks nearly as before.",
    "pairs a step": "Smaller steps, and so more of them, lose a point or two.",
    "beta": "A smaller beta ranks up to two points better, because less of the implicit reward's "
    "noise comes into the sum. It is not the default: over 36 steps it cost the model its language "
    "([7](method.md)).",
    "objective and beta": "A small beta helps one loss for the sum most.",
    "objective and anchor": "By the sum of the rewards all rank within two points. Two losses and "
    "an anchor of 0.1 leave the policy the better one: its own reward ranks seven points more "
    "right than with one loss and 0.2, and it keeps its language. This is the default.",
    "rate of LoRA, separate, anchor 0.1": "Nor with today's objective, where tastes differ, are "
    "opposite, or people agree: up to ten times the rate changes no mean by more than a point.",
    "rates of adapter and head, separate, anchor 0.1": "A fifth of the adapter's rate and LoRA's "
    "rate for the low-rank head, the defaults, rank a point better, and in no setting do chosen "
    "answers become less likely by more than 0.001 nats a token, instead of up to 0.15; where 16 "
    "people are judged on sides of debates that nobody trained on, the policy ranks 12 points "
    "better. It is somewhat less its client's own: 93 instead of 97 % where tastes are opposite, "
    "and 82 without an adapter. The head's faster rate is 3 of these points. Twice this rate for "
    "the adapter ranks as well: the policy is right in 96 % where tastes are opposite, and in 54 "
    "instead of 57 % for the 16.",
    "rate of LoRA, adapter 0.0001, head 0.0002": "Beside these slower private parts, ten times "
    "LoRA's rate lets people who agree in the main rank 1 and 4 points better, film clients 2 to "
    "3 worse; where tastes are opposite the policy falls from 93 to 64 % right. FedProx's "
    "proximal term gives 8 points of that back and changes the sums by two at most.",
    "adapter width, separate, beta 0.03": "With two losses and a beta of 0.03 the "
    "adapter costs the sum a point.",
    "schedule": "Private parts first, at twice the work, gives the same.",
    "head": "A whole private head, a low-rank one and none at all rank alike: here it carries "
    "nothing.",
    "adapter width": "Without the adapter the sum is 2.7 points better, with a wider one 3.2 "
    "worse: on so few pairs it does not help.",
    "averaging": "The mean of LoRA's factors is as good as that of their products, and faster.",
    "moments of LoRA": "Keeping LoRA's moments over rounds changes nothing.",
}
