"""The objectives: who is a positive, who is drawn, what is masked, and what state remembers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.batch import StepContext
from models.objectives.itc import Keys, even_targets, in_batch_itc, positives, queue_itc
from models.objectives.itm import check_scope, draw_negatives, itm_loss
from models.objectives.mlm import mask_tokens, mlm_loss
from models.objectives.momentum import MomentumTeacher
from models.objectives.queue import UNKNOWN_ID, FeatureQueue


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(rows: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=generator(seed)), dim=-1)


class TestItc:
    def test_distinct_pictures_give_the_usual_symmetric_cross_entropy(self) -> None:
        image_BE, text_BE, scale = unit(6, seed=1), unit(6, seed=2), torch.tensor(10.0)
        logits, diagonal = 10.0 * image_BE @ text_BE.T, torch.arange(6)
        expected = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
        torch.testing.assert_close(in_batch_itc(image_BE, text_BE, diagonal * 7, scale=scale), expected)

    def test_captions_of_one_picture_share_the_target(self) -> None:
        positive = positives(torch.tensor([5, 5, 9]), torch.tensor([5, 5, 9, UNKNOWN_ID]))
        target = even_targets(positive, torch.float32)
        assert target.tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0]]

    def test_a_second_caption_of_the_picture_is_not_pushed_away(self) -> None:
        # Two identical captions of one picture: pulling both is free, so the loss can reach its entropy.
        one = unit(2)[:1].repeat(2, 1)
        loss = in_batch_itc(one, one, torch.tensor([3, 3]), scale=torch.tensor(50.0))
        assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-5)
        assert in_batch_itc(one, one, torch.tensor([3, 4]), scale=torch.tensor(50.0)) > 0.69

    def test_queue_form_follows_the_paper(self) -> None:
        image, text, t_image, t_text = (unit(3, seed=s) for s in range(4))
        old_image, old_text, ids = unit(5, seed=7), unit(5, seed=8), torch.tensor([1, 2, 3])
        keys = Keys(
            image_KE=torch.cat([t_image, old_image]),
            text_KE=torch.cat([t_text, old_text]),
            id_K=torch.tensor([1, 2, 3, 10, 2, 11, 12, UNKNOWN_ID]),
        )
        tau, alpha = torch.tensor(0.07), 0.4
        hard = torch.zeros(3, 8)
        hard[0, 0] = hard[2, 2] = 1.0
        hard[1, 1] = hard[1, 4] = 0.5  # picture 2 stands in the queue as well
        expected = torch.tensor(0.0)
        for student, teacher, key in ((image, t_image, keys.text_KE), (text, t_text, keys.image_KE)):
            target = alpha * (teacher @ key.T / tau).softmax(1) + (1 - alpha) * hard
            expected = expected - (target * (student @ key.T / tau).log_softmax(1)).sum(1).mean() / 2
        loss = queue_itc(
            image, text, ids, teacher_image_BE=t_image, teacher_text_BE=t_text, keys=keys,
            temperature=tau, alpha=alpha,
        )  # fmt: skip
        torch.testing.assert_close(loss, expected)

    def test_losses_are_float32_under_autocast(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = in_batch_itc(unit(4), unit(4, seed=1), torch.arange(4), scale=torch.tensor(14.0))
        torch.testing.assert_close(
            loss, in_batch_itc(unit(4), unit(4, seed=1), torch.arange(4), scale=torch.tensor(14.0))
        )


class TestHardNegatives:
    def test_drawn_in_proportion_and_never_a_positive(self) -> None:
        ids = torch.tensor([0, 0, 1, 2])
        similarity = torch.tensor([5.0, 4.0, 1.0, 0.0]).repeat(4, 1)
        counts = torch.zeros(4, 4)
        for step in range(2000):
            uniform = StepContext(seed=0, step=step).uniform("itm text", torch.arange(4))
            drawn = draw_negatives(similarity, ids, ids, uniform_B=uniform)
            assert drawn.valid_B.all()
            counts[torch.arange(4), drawn.index_B] += 1
        assert (counts * positives(ids, ids)).sum() == 0
        share = similarity[0].softmax(0) + 1e-4
        for row, negatives in ((0, [2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2])):
            expected = share[negatives] / share[negatives].sum()
            torch.testing.assert_close(counts[row, negatives] / 2000, expected, atol=0.03, rtol=0)

    def test_a_draw_is_the_inverse_of_the_cumulative_weights(self) -> None:
        similarity = torch.log(torch.tensor([[0.5, 0.2, 0.2, 0.1]])).repeat(5, 1)
        rows, columns = torch.full((5,), 7), torch.tensor([7, 1, 2, 3])
        uniform = torch.tensor([0.0, 0.39, 0.41, 0.79, 0.81])
        drawn = draw_negatives(similarity, rows, columns, uniform_B=uniform)
        assert drawn.index_B.tolist() == [1, 1, 2, 2, 3]

    @pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2.0**-53])
    def test_a_column_that_takes_all_probability_does_not_break_the_draw(self, point: float) -> None:
        similarity = torch.full((3, 3), -1e4) + torch.eye(3) * 2e4  # softmax is the identity
        ids, uniform = torch.arange(3), torch.full((3,), point, dtype=torch.float64)
        drawn = draw_negatives(similarity, ids, ids, uniform_B=uniform)
        assert drawn.valid_B.all()
        assert ((drawn.index_B != ids) & (drawn.index_B < 3)).all()

    def test_without_any_negative_the_rows_are_invalid_and_leave_the_loss(self) -> None:
        ids = torch.tensor([4, 4, 4])
        drawn = draw_negatives(torch.randn(3, 3), ids, ids, uniform_B=torch.tensor([0.0, 0.5, 0.99]))
        assert not drawn.valid_B.any()
        assert ((drawn.index_B >= 0) & (drawn.index_B < 3)).all()
        logits = torch.randn(9, 2, generator=generator(), requires_grad=True)
        loss = itm_loss(logits, no_image_B=~drawn.valid_B, no_text_B=~drawn.valid_B)
        torch.testing.assert_close(loss, F.cross_entropy(logits[:3], torch.ones(3, dtype=torch.int64)))
        loss.backward()
        assert logits.grad[3:].abs().sum() == 0

    def test_loss_labels_pairs_then_mismatches(self) -> None:
        logits, none = torch.randn(6, 2, generator=generator()), torch.zeros(2, dtype=torch.bool)
        expected = F.cross_entropy(logits, torch.tensor([1, 1, 0, 0, 0, 0]))
        torch.testing.assert_close(itm_loss(logits, no_image_B=none, no_text_B=none), expected)

    def test_the_scope_is_one_of_two(self) -> None:
        with pytest.raises(ValueError, match="itm_negatives 'all' is unknown; use global"):
            check_scope("all")


class TestMlm:
    PAD, CLS, SEP, MASK = 0, 2, 3, 4

    def draw(self, probability: float = 0.15, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        ids_BT = torch.full((400, 50), 77)
        ids_BT[:, 0], ids_BT[:, 39], ids_BT[:, 40:] = self.CLS, self.SEP, self.PAD
        text = mask_tokens(
            ids_BT, (ids_BT != self.PAD).long(), context=StepContext(seed=seed, step=0),
            row_B=torch.arange(400), probability=probability, mask_id=self.MASK, vocab_size=1000,
            keep_ids=(self.PAD, self.CLS),
        )  # fmt: skip
        masked_BT = torch.zeros_like(ids_BT, dtype=torch.bool).flatten()
        masked_BT[text.index_X] = True
        masked_BT = masked_BT.view_as(ids_BT)
        assert torch.equal(text.target_X, ids_BT[masked_BT])
        assert torch.equal(text.ids_BT[~masked_BT], ids_BT[~masked_BT])
        return text.ids_BT, masked_BT

    def test_fifteen_percent_of_which_eighty_ten_ten(self) -> None:
        ids_BT, masked_BT = self.draw()
        words_BT = masked_BT[:, 1:39]
        assert words_BT.float().mean().item() == pytest.approx(0.15, abs=0.01)
        read = ids_BT[:, 1:39][words_BT]
        assert (read == self.MASK).float().mean().item() == pytest.approx(0.8, abs=0.03)
        assert (read == 77).float().mean().item() == pytest.approx(0.1, abs=0.03)
        random = read[(read != 77) & (read != self.MASK)].double()
        assert random.min() >= 0
        assert 999 >= random.max() > 900  # any word of the vocabulary
        assert random.mean().item() == pytest.approx(500, abs=60)

    def test_sep_may_be_masked_but_neither_cls_nor_padding(self) -> None:
        _, masked_BT = self.draw(probability=0.5)
        assert masked_BT[:, 39].any()
        assert not masked_BT[:, 0].any()
        assert not masked_BT[:, 40:].any()

    def test_loss_mixes_hard_and_soft_targets(self) -> None:
        logits, target = torch.randn(5, 9, generator=generator()), torch.tensor([1, 2, 3, 4, 5])
        soft = torch.randn(5, 9, generator=generator(1)).softmax(1)
        expected = 0.7 * F.cross_entropy(logits, target) + 0.3 * F.cross_entropy(logits, soft)
        torch.testing.assert_close(mlm_loss(logits, target, soft_XV=soft, alpha=0.3), expected)
        torch.testing.assert_close(mlm_loss(logits, target), F.cross_entropy(logits, target))

    def test_a_batch_without_masked_tokens_has_loss_and_gradient_zero(self) -> None:
        logits = torch.zeros(0, 9, requires_grad=True)
        loss = mlm_loss(logits, torch.zeros(0, dtype=torch.int64))
        loss.backward()
        assert loss.item() == 0.0


class TestMomentumTeacher:
    def test_update_is_the_moving_average_and_gradients_never_reach_it(self) -> None:
        student = nn.Linear(3, 2)
        teacher = MomentumTeacher(student)
        old = teacher.module.weight.clone()
        with torch.no_grad():
            student.weight.add_(1.0)
        teacher.update(student, momentum=0.9)
        torch.testing.assert_close(teacher.module.weight, 0.9 * old + 0.1 * student.weight)
        assert not any(p.requires_grad for p in teacher.module.parameters())
        teacher.reset(student)
        torch.testing.assert_close(teacher.module.weight, student.weight.detach())

    def test_follows_a_bfloat16_student_that_a_bfloat16_teacher_would_never_reach(self) -> None:
        student = nn.Linear(4, 4).bfloat16()
        teacher = MomentumTeacher(student)
        with torch.no_grad():
            student.weight.fill_(1.0)
            teacher.module.weight.fill_(0.9)
        low = torch.full((4, 4), 0.9, dtype=torch.bfloat16)
        for _ in range(1000):
            teacher.update(student, momentum=0.995)
            low.lerp_(student.weight.detach(), 0.005)
        assert teacher.module.weight.dtype == torch.float32
        assert teacher.module.weight.mean().item() == pytest.approx(1.0, abs=1e-3)
        assert low.float().mean().item() < 0.95

    def test_computes_in_the_students_precision(self) -> None:
        teacher = MomentumTeacher(nn.Linear(4, 4).bfloat16())
        with teacher.inference(torch.bfloat16) as module:
            assert module(torch.ones(1, 4)).dtype == torch.bfloat16
        with teacher.inference(torch.float32) as module:
            out = module(torch.ones(1, 4))
        assert out.dtype == torch.float32
        assert not out.requires_grad

    def test_partitioned_weights_are_refused_by_name(self) -> None:
        student = nn.Linear(3, 2)
        teacher = MomentumTeacher(student)
        student.weight.data = torch.zeros(0)  # what ZeRO stage 3 leaves on a rank
        with pytest.raises(ValueError, match=r"weight has shape \(0,\).*use zero.stage 0, 1 or 2"):
            teacher.update(student, momentum=0.9)


class TestFeatureQueue:
    def put(self, queue: FeatureQueue, *ids: int) -> None:
        id_G = torch.tensor(ids)
        queue.enqueue(id_G[:, None].repeat(1, 2).float(), -id_G[:, None].repeat(1, 2).float(), id_G)

    def test_fills_up_wraps_and_overwrites_the_oldest(self) -> None:
        queue = FeatureQueue(5, 2)
        assert len(queue.read()[2]) == 0
        self.put(queue, 1, 2, 3)
        assert queue.read()[2].tolist() == [1, 2, 3]
        self.put(queue, 4, 5, 6)  # 3 does not divide 5
        image, text, ids = queue.read()
        assert ids.tolist() == [6, 2, 3, 4, 5]
        assert image[:, 0].tolist() == [6, 2, 3, 4, 5]
        assert text[:, 0].tolist() == [-6, -2, -3, -4, -5]

    def test_a_batch_longer_than_the_queue_leaves_its_end(self) -> None:
        queue = FeatureQueue(2, 2)
        self.put(queue, 1, 2, 3, 4, 5)
        assert sorted(queue.read()[2].tolist()) == [4, 5]
        self.put(queue, 6)
        assert sorted(queue.read()[2].tolist()) == [5, 6]

    def test_saved_and_restored_it_goes_on_alike(self) -> None:
        first, second = FeatureQueue(5, 2), FeatureQueue(5, 2)
        self.put(first, 1, 2, 3)
        second.load_state_dict({k: v.clone() for k, v in first.state_dict().items()})
        for queue in (first, second):
            self.put(queue, 4, 5, 6)
        for a, b in zip(first.read(), second.read(), strict=True):
            assert torch.equal(a, b)
        with pytest.raises(ValueError, match=r"saved queue of shape \(5, 2\)"):
            FeatureQueue(6, 2).load_state_dict(first.state_dict())

    def test_length_zero_is_no_queue(self) -> None:
        queue = FeatureQueue(0, 2)
        self.put(queue, 1)
        assert len(queue.read()[2]) == 0
