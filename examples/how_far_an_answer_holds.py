"""
How far an answer holds
=======================

Put noise on the images, let the most frequent answer count, and state within which distance no change can alter it.
"""

# %%
# Three networks
# --------------
# Randomised smoothing answers with the class that a network gives most often for x + σN(0, I). Networks are trained
# with the noise that they will be asked with; here three small ones, on digits.

from netkit import PRESETS, certify, en_resnet, inject_input_noise, load, train

digits = load("digits")
x, y = digits.images(digits.test.x[:100]), digits.test.y[:100]
certificates = {}
for sigma in (0.12, 0.25, 0.5):
    model = en_resnet(8, num_members=1, noise="off", in_channels=1, width=4, seed=0)
    inject_input_noise(model, sigma, seed=0)
    train(model, digits, PRESETS["digits"], loss="natural", epochs=8, lr=0.2, hold_out=False, select="last")
    certificates[sigma] = certify(model, x, num_draws=400, selection_draws=50, seed=0)
    print(certificates[sigma])

# %%
# Certified accuracy
# ------------------
# The share of images that are right, and certified to stay so up to a distance in L2. More noise reaches farther and
# costs accuracy nearby. The curves end where all draws agree: with 400 draws no one can know more than 2.1 σ.

import matplotlib.pyplot as plt
import numpy as np

figure, panel = plt.subplots(figsize=(5.4, 3.2))
radii = np.linspace(0, 1.0, 101)
for (sigma, certificate), colour in zip(certificates.items(), ("#35b779", "#31688e", "#440154"), strict=True):
    found = certificate.certified_accuracy(y, radii.tolist())
    panel.plot(radii, [100 * each.mean for each in found], color=colour, label=f"σ = {sigma}")
    low, high = ([100 * getattr(each.interval, end) for each in found] for end in ("low", "high"))
    panel.fill_between(radii, low, high, color=colour, alpha=0.15, lw=0)
panel.set(xlabel="radius, in L2", ylabel="certified accuracy [%]", xlim=(0, 1.0), ylim=(0, 100))
panel.legend()
plt.show()

# %%
# An image's certificate fails with a chance of 0.1% at most; the bands are 95% intervals over the 100 images. An eps of
# L∞ attacks is no radius: 0.2 on each of 64 pixels is up to 1.6 in L2.
