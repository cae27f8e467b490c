"""
What noise hides
================

Audit a network whose noise makes it look robust: one gradient of a random model is not the gradient of its mean.
"""

# %%
# A network that was never defended
# ---------------------------------
# It is trained on clean images, without noise; then large noise is put into its blocks. Nothing about it is robust.

from netkit import PRESETS, audit, en_resnet, inject_noise, load, train

digits = load("digits")
model = en_resnet(8, num_members=1, noise="off", in_channels=1, width=4, seed=0)
train(model, digits, PRESETS["digits"], loss="natural", epochs=8, lr=0.2, hold_out=False, select="last")
inject_noise(model, noise_coef=0.5, noise_std="sample", seed=0)

# %%
# The audit
# ---------
# ``audit`` looks at the model first, runs what fits it, with more and more draws for each gradient, and scores every
# attack on fresh draws. The worst case of each image counts.

x, y = digits.images(digits.test.x[:80]), digits.test.y[:80]
report = audit(model, x, y, eps=0.1, eot_draws=(1, 4, 12), num_draws=6, seed=0)
print(report)

# %%
# The picture
# -----------
# Dots are the accuracy of one draw, with 95% intervals over images; rings that of the vote of six. What the network has
# left under a single attack is a measure of that attack: the number to quote is the last one.

import matplotlib.pyplot as plt

rows = [row for row in report.rows if row.kind != "wide"]
draws = [f", EOT {row.eot_draws}" if row.kind == "sweep" else "" for row in rows]
names = [row.title + more for row, more in zip(rows, draws, strict=True)] + ["worst case of each image"]
scores = [row.score for row in rows] + [report.worst]
figure, panel = plt.subplots(figsize=(6.2, 0.26 * len(names) + 0.8))
for place, score in enumerate(scores):
    colour = "tab:red" if score is report.worst else "0.25"
    panel.plot([100 * score.interval.low, 100 * score.interval.high], [place, place], color=colour, lw=1.2)
    panel.plot(100 * score.mean, place, "o", ms=4, color=colour)
    panel.plot(100 * score.vote, place, "o", ms=4.5, mfc="none", color=colour)
panel.set_yticks(range(len(names)), names)
panel.invert_yaxis()
panel.grid(axis="x", color="0.9")
panel.set(xlabel="accuracy [%]", xlim=(0, 100))
plt.show()
